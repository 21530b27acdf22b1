// e^x and logarithms of packs, for terms/functions.h. float64 takes the C library's functions, lane by lane: it is there
// for oracles, not for speed.
#pragma once

#include <math.h>

#include "lanes.h"

namespace rlhf {
namespace RLHF_ISA {

using Floats = Pack<float>;
using Doubles = Pack<double>;
using Ints = Pack<int32_t>;

template <typename V>
struct Exponential {  // e^x and e^x − 1
  V value, minus_one;
};

// Cephes' expf: x = n·ln 2 + r with |r| ≤ ½·ln 2, e^r − 1 by a polynomial, times 2^n in two steps so that n = 128 fits.
RLHF_LANES Exponential<Floats> exponential(Floats x) {
  const float highest = 88.722839f, lowest = -87.336544f, round = 12582912.0f;  // 1.5·2^23 rounds to an integer
  const Floats bounded = select(x > highest, Floats::all_of(highest), select(x < lowest, Floats::all_of(lowest), x));
  const Floats shifted = bounded * 1.44269504f + round;
  const Floats n = shifted - round;
  const Floats r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r;
  Ints bits = same_bits<Ints>(shifted);  // the low bits of what was rounded are n
#define RLHF_DO(p) bits.p = (bits.p + 126) << 23;
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  const Floats half = same_bits<Floats>(bits);  // 2^(n−1)
  const Floats value = (half * p + half) * 2, minus_one = (half * p + (half - 0.5f)) * 2;
  const Floats infinity = Floats::all_of(INFINITY);
  return {select(x > highest, infinity, value), select(x > highest, infinity, minus_one)};
}
RLHF_LANES Exponential<Doubles> exponential(Doubles x) {
  Exponential<Doubles> found;
  for (int i = 0; i < 8; ++i) {
    found.value.set(i, ::exp(x[i]));
    found.minus_one.set(i, ::expm1(x[i]));
  }
  return found;
}

// Cephes' logf of 2^exponent·(1 + f), √½ ≤ 1 + f < √2.
RLHF_LANES Floats logarithm(Floats f, Floats exponent) {
  Floats p = f * 7.0376836292e-2f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const Floats square = f * f;
  const Floats tail = p * f * square + exponent * -2.12194440e-4f - square * 0.5f;
  return (f + tail) + exponent * 0.693359375f;
}

// log(1 + x) for 0 ≤ x ≤ 1.
RLHF_LANES Floats log1p_of(Floats x) {
  const Ints large = x > 0.41421356f;
  return logarithm(select(large, (x - 1) * 0.5f, x), select(large, Floats::all_of(1), Floats{}));
}

// log(x) for a normal x > 0.
RLHF_LANES Floats log_of(Floats x) {
  Ints mantissa = same_bits<Ints>(x), exponent = mantissa;
#define RLHF_DO(p)                            \
  exponent.p = (exponent.p >> 23) - 126; /* x = m·2^exponent with ½ ≤ m < 1 */ \
  mantissa.p = (mantissa.p & 0x007fffff) | 0x3f000000;
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  const Floats m = same_bits<Floats>(mantissa);
  const Ints small = m < 0.70710678f;
  Floats power;
#define RLHF_DO(p) power.p = __builtin_convertvector(exponent.p + small.p, Floats::Native);
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  return logarithm(select(small, m + m - 1, m - 1), power);
}

RLHF_LANES Doubles log1p_of(Doubles x) {
  for (int i = 0; i < 8; ++i) x.set(i, ::log1p(x[i]));
  return x;
}
RLHF_LANES Doubles log_of(Doubles x) {
  for (int i = 0; i < 8; ++i) x.set(i, ::log(x[i]));
  return x;
}

}  // namespace RLHF_ISA
}  // namespace rlhf
