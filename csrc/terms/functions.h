// What the formulas in this folder are written in: one number (CUDA, float64 tails) or a vector of them (cpu/lanes.h).
//
// Every function has internal linkage. The CPU sources are compiled once an instruction set, and the linker would
// otherwise keep one copy of an inline function for all of them.
#pragma once

#include <math.h>
#include <stdint.h>

#ifdef RLHF_ISA
#include "../cpu/lane_functions.h"  // before the templates, which look its functions up here
#endif

#ifdef __CUDACC__
#define RLHF_FN static __device__ __forceinline__
#else
#define RLHF_FN static inline __attribute__((always_inline, unused))
#endif

namespace rlhf {

// The scalar type of V: V itself, or what a vector of it holds.
template <typename V>
struct ScalarOf {
  using type = V;
};
template <typename V>
using Scalar = typename ScalarOf<V>::type;

template <typename V>
using Mask = decltype(V{} < V{});

RLHF_FN float select(bool condition, float yes, float no) { return condition ? yes : no; }
RLHF_FN double select(bool condition, double yes, double no) { return condition ? yes : no; }

// e^x and e^x − 1 together: both are exact to a rounding or two, each where the other one is not.
template <typename V>
struct Exp {
  V value, minus_one;
};
RLHF_FN Exp<float> exp_of(float x) { return {expf(x), expm1f(x)}; }
RLHF_FN Exp<double> exp_of(double x) { return {exp(x), expm1(x)}; }

#ifdef RLHF_ISA
using RLHF_ISA::log1p_of;
using RLHF_ISA::log_of;
using RLHF_ISA::select;

template <typename T>
struct ScalarOf<RLHF_ISA::Pack<T>> {
  using type = T;
};
template <typename T>
RLHF_FN Exp<RLHF_ISA::Pack<T>> exp_of(RLHF_ISA::Pack<T> x) {
  const auto both = RLHF_ISA::exponential(x);
  return {both.value, both.minus_one};
}
#endif

// log(1 + x) for 0 ≤ x ≤ 1.
RLHF_FN float log1p_of(float x) { return log1pf(x); }
RLHF_FN double log1p_of(double x) { return log1p(x); }

// log(x) for x > 0.
RLHF_FN float log_of(float x) { return logf(x); }
RLHF_FN double log_of(double x) { return log(x); }

// NaN in the first argument passes through, as in torch.clamp.
template <typename V>
RLHF_FN V at_least(V x, V low) {
  return select(x < low, low, x);
}
template <typename V>
RLHF_FN V at_most(V x, V high) {
  return select(x > high, high, x);
}
template <typename V>
RLHF_FN V clamp(V x, V low, V high) {
  return at_most(at_least(x, low), high);
}

// The same number in every lane.
template <typename V>
RLHF_FN V all(Scalar<V> x) {
  return x - V{};  // not V{} + x, an addition: it turns −0 into 0
}

// −log σ(x) and σ(−x) = −d/dx of it.
template <typename V>
struct NegativeLogSigmoid {
  V value, sigmoid_of_minus;
};
template <typename V>
RLHF_FN NegativeLogSigmoid<V> negative_log_sigmoid(V x) {
  const V distance = select(x < 0, x, -x);  // −|x|
  const V small = exp_of(distance).value;   // e^−|x|
  const V whole = V{} + 1;
  return {select(x < 0, -x, V{}) + log1p_of(small), select(x < 0, whole, small) / (whole + small)};
}

}  // namespace rlhf
