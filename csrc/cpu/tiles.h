// Tiles for the products of products.h: packing, transposing, narrowing; and e^x with fused multiply-adds.
//
// A "paired" tile [r×c] is what a product takes on its right: [r/pair][c] units (products.h).
#pragma once

#include "lane_functions.h"
#include "products.h"

namespace rlhf {
namespace RLHF_ISA {

using cpu::Bf16;
using cpu::kPair;
using cpu::Unit;
using cpu::Wide;

constexpr int64_t kStep = 16;  // rows that are moved together; what sizes of tiles are multiples of

RLHF_LANES int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
RLHF_LANES int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
RLHF_LANES int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// Hands out pieces of one block of memory, each on a cache line of its own.
struct Scratch {
  char* next;
  template <typename T>
  RLHF_MEMBER T* take(int64_t count) {
    T* found = reinterpret_cast<T*>(next);
    next += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return found;
  }
};

// --- arithmetic
// -----------------------------------------------------------------------------------------------------

// a·b + c, rounded once where the instruction set can: unlike the rest of the lanes, not the same bits on all
// of them. What a product precedes cannot be that anyway.
RLHF_LANES Floats fused(Floats a, Floats b, Floats c) {
#if RLHF_WIDTH == 64
  c.p0 = _mm512_fmadd_ps(a.p0, b.p0, c.p0);
  return c;
#elif RLHF_WIDTH == 32
#define RLHF_DO(p) c.p = _mm256_fmadd_ps(a.p, b.p, c.p);
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  return c;
#else
  return a * b + c;
#endif
}
RLHF_LANES Floats fused(Floats a, float b, float c) { return fused(a, Floats::all_of(b), Floats::all_of(c)); }
RLHF_LANES Floats fused(Floats a, Floats b, float c) { return fused(a, b, Floats::all_of(c)); }
RLHF_LANES Doubles fused(Doubles a, Doubles b, Doubles c) { return a * b + c; }

// The larger; b where a is NaN or both are.
RLHF_LANES Floats larger(Floats a, Floats b) {
#if RLHF_WIDTH == 64
  a.p0 = _mm512_max_ps(a.p0, b.p0);
  return a;
#elif RLHF_WIDTH == 32
#define RLHF_DO(p) a.p = _mm256_max_ps(a.p, b.p);
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  return a;
#else
  return select(a > b, a, b);
#endif
}
RLHF_LANES Doubles larger(Doubles a, Doubles b) { return select(a > b, a, b); }

// e^x for x up to 88, as exponential() has it; 1e-38 where it would be less, NaN of NaN.
RLHF_LANES Floats exp_of_small(Floats x) {
  const float round = 12582912.0f;  // 1.5·2^23 rounds to an integer
  const Floats bounded = larger(Floats::all_of(-87.336544f), x);
  const Floats shifted = fused(bounded, 1.44269504f, round);
  const Floats n = shifted - round;
  const Floats r = fused(n, Floats::all_of(2.12194440e-4f), fused(n, Floats::all_of(-0.693359375f), bounded));
  Floats p = fused(r, 1.9875691500e-4f, 1.3981999507e-3f);
  p = fused(p, r, 8.3334519073e-3f);
  p = fused(p, r, 4.1665795894e-2f);
  p = fused(p, r, 1.6666665459e-1f);
  p = fused(p, r, 5.0000001201e-1f);
  p = fused(p * r, r, r);
  Ints bits = same_bits<Ints>(shifted);  // the low bits of what was rounded are n
#define RLHF_DO(p) bits.p = (bits.p + 127) << 23;
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  const Floats power = same_bits<Floats>(bits);
  return fused(power, p, power);
}
RLHF_LANES Doubles exp_of_small(Doubles x) { return exponential(x).value; }

// --- bfloat16
// -------------------------------------------------------------------------------------------------------

// Rounded to the nearest, ties to even; the upper half of each lane.
RLHF_LANES Ints rounded_bits(Floats x) {
  Ints bits = same_bits<Ints>(x);
#define RLHF_DO(p) bits.p += ((bits.p >> 16) & 1) + 0x7fff;
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  return bits;
}

typedef uint16_t HalfNative __attribute__((vector_size(RLHF_WIDTH / 2)));

RLHF_LANES void store_narrow(Bf16* to, Floats x) {
  const Ints bits = rounded_bits(x);
#define RLHF_DO(p)                                                                       \
  {                                                                                      \
    typedef uint32_t Unsigned __attribute__((vector_size(RLHF_WIDTH)));                  \
    const HalfNative half = __builtin_convertvector((Unsigned)bits.p >> 16, HalfNative); \
    memcpy(to, &half, sizeof half);                                                      \
    to += Floats::width;                                                                 \
  }
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
}
template <typename T>
RLHF_LANES void store_narrow(T* to, Pack<T> x) {
  store(to, x);
}

RLHF_LANES Floats load_wide(const Bf16* from) {
  Ints bits;
#define RLHF_DO(p)                                                       \
  {                                                                      \
    HalfNative half;                                                     \
    memcpy(&half, from, sizeof half);                                    \
    bits.p = __builtin_convertvector(half, typename Ints::Native) << 16; \
    from += Floats::width;                                               \
  }
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  return same_bits<Floats>(bits);
}
template <typename T>
RLHF_LANES Pack<T> load_wide(const T* from) {
  return load(from);
}

// Two rows as the paired row of units.
RLHF_LANES Floats paired(Floats even, Floats odd) {
  Ints low = rounded_bits(even), high = rounded_bits(odd);
#define RLHF_DO(p)                                                                      \
  {                                                                                     \
    typedef uint32_t Unsigned __attribute__((vector_size(RLHF_WIDTH)));                 \
    low.p = (Ints::Native)(((Unsigned)low.p >> 16) | ((Unsigned)high.p & 0xffff0000u)); \
  }
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  return same_bits<Floats>(low);
}

// --- packing
// --------------------------------------------------------------------------------------------------------

// out[c·stride + i] = rows[i][c] for 16 rows.
template <typename U>
RLHF_LANES void transpose(const U* const* rows, int64_t columns, U* out, int64_t stride) {
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t i = 0; i < kStep; ++i) out[c * stride + i] = rows[i][c];
}

#if RLHF_WIDTH == 64
// Rows i and i + step trade halves of 2·step lanes (Eklundh 1972).
#define RLHF_UPPER(k) ((k) & step ? 16 + (k) - step : (k))
#define RLHF_LOWER(k) ((k) & step ? 16 + (k) : (k) + step)
#define RLHF_16(X) \
  X(0), X(1), X(2), X(3), X(4), X(5), X(6), X(7), X(8), X(9), X(10), X(11), X(12), X(13), X(14), X(15)
template <int step>
RLHF_LANES void trade(Ints::Native* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i & step) continue;
    const Ints::Native a = rows[i], b = rows[i + step];
    rows[i] = __builtin_shufflevector(a, b, RLHF_16(RLHF_UPPER));
    rows[i + step] = __builtin_shufflevector(a, b, RLHF_16(RLHF_LOWER));
  }
}
#undef RLHF_16
#undef RLHF_LOWER
#undef RLHF_UPPER

template <>
inline __attribute__((always_inline)) void transpose<uint32_t>(const uint32_t* const* rows, int64_t columns,
                                                               uint32_t* out, int64_t stride) {
  int64_t c = 0;
  for (; c + kStep <= columns; c += kStep) {
    Ints::Native tile[kStep];
#pragma GCC unroll 16
    for (int i = 0; i < kStep; ++i) memcpy(&tile[i], rows[i] + c, sizeof tile[i]);
    trade<8>(tile);
    trade<4>(tile);
    trade<2>(tile);
    trade<1>(tile);
#pragma GCC unroll 16
    for (int i = 0; i < kStep; ++i) memcpy(out + (c + i) * stride, &tile[i], sizeof tile[i]);
  }
  for (; c < columns; ++c)
    for (int64_t i = 0; i < kStep; ++i) out[c * stride + i] = rows[i][c];
}
#endif

// `pair` rows as one row of units.
RLHF_LANES void pair_rows(const float* const* rows, int64_t columns, uint32_t* out) {
  memcpy(out, rows[0], columns * sizeof(float));
}
RLHF_LANES void pair_rows(const double* const* rows, int64_t columns, uint64_t* out) {
  memcpy(out, rows[0], columns * sizeof(double));
}
RLHF_LANES void pair_rows(const Bf16* const* rows, int64_t columns, uint32_t* out) {
  const Bf16 *even = rows[0], *odd = rows[1];
  for (int64_t c = 0; c < columns; ++c) out[c] = even[c].bits | static_cast<uint32_t>(odd[c].bits) << 16;
}

// Rows [count×columns] as paired tile: [count/pair][columns] units. count is a multiple of 16.
template <typename E>
RLHF_LANES void pack_paired(const E* const* rows, int64_t count, int64_t columns, Unit<E>* out) {
  for (int64_t i = 0; i < count; i += kPair<E>, out += columns) pair_rows(rows + i, columns, out);
}

// The transpose of rows [count×columns] as paired tile: [columns/pair][stride] units.
template <typename E>
RLHF_LANES void pack_transposed_paired(const E* const* rows, int64_t count, int64_t columns, Unit<E>* out,
                                       int64_t stride) {
  for (int64_t i = 0; i < count; i += kStep) {
    const Unit<E>* units[kStep];
    for (int64_t j = 0; j < kStep; ++j) units[j] = reinterpret_cast<const Unit<E>*>(rows[i + j]);
    transpose(units, columns / kPair<E>, out + i, stride);
  }
}

// The transpose of rows [count×columns], plain: [columns][stride] numbers; count is a multiple of 16·pair.
// `work` holds 16·columns units.
template <typename E>
RLHF_LANES void pack_transposed(const E* const* rows, int64_t count, int64_t columns, E* out, int64_t stride,
                                Unit<E>* work) {
  for (int64_t i = 0; i < count; i += kStep * kPair<E>) {
    pack_paired(rows + i, kStep * kPair<E>, columns, work);
    const Unit<E>* units[kStep];
    for (int64_t j = 0; j < kStep; ++j) units[j] = work + j * columns;
    transpose(units, columns, reinterpret_cast<Unit<E>*>(out + i), stride / kPair<E>);
  }
}

}  // namespace RLHF_ISA
}  // namespace rlhf
