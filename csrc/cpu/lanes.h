// Packs of 64 bytes, kept in vectors of the width that the instruction set has: arithmetic, memory, sums. Functions are in
// lane_functions.h.
//
// No fused multiply-adds and the same order everywhere: every instruction set gives the same bits.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <type_traits>  // nothing in it is compiled

#include "count_true.h"

#define RLHF_LANES static inline __attribute__((always_inline, unused))
#define RLHF_MEMBER inline __attribute__((always_inline))

// Members with names rather than an array: the compiler then keeps each in a register.
#if defined(__AVX512F__)
#define RLHF_WIDTH 64
#define RLHF_EACH(DO) DO(p0)
#elif defined(__AVX2__)
#define RLHF_WIDTH 32
#define RLHF_EACH(DO) DO(p0) DO(p1)
#else
#define RLHF_WIDTH 16
#define RLHF_EACH(DO) DO(p0) DO(p1) DO(p2) DO(p3)
#endif

namespace rlhf {
namespace RLHF_ISA {  // a type of its own for each instruction set

template <typename T>
struct Pack {
  typedef T Native __attribute__((vector_size(RLHF_WIDTH)));
  static constexpr int parts = 64 / RLHF_WIDTH;
  static constexpr int width = RLHF_WIDTH / sizeof(T);
  static constexpr int64_t count = 64 / sizeof(T);

#define RLHF_DO(p) Native p;
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO

  // These two go by memory.
  RLHF_MEMBER T operator[](int64_t lane) const {
    T lanes[count];
    memcpy(lanes, this, sizeof lanes);
    return lanes[lane];
  }
  RLHF_MEMBER void set(int64_t lane, T x) { memcpy(reinterpret_cast<T*>(this) + lane, &x, sizeof x); }

  template <int i>
  RLHF_MEMBER Native& at() {
    if constexpr (i == 0) return p0;
#if RLHF_WIDTH < 64
    if constexpr (i == 1) return p1;
#endif
#if RLHF_WIDTH < 32
    if constexpr (i == 2) return p2;
    if constexpr (i == 3) return p3;
#endif
  }

#define RLHF_OPERATOR(op)                                                                  \
  friend RLHF_MEMBER Pack operator op(Pack a, Pack b) {                                    \
    RLHF_EACH(RLHF_DO)                                                                     \
    return a;                                                                              \
  }                                                                                        \
  friend RLHF_MEMBER Pack operator op(Pack a, T b) { return a op all_of(b); }              \
  friend RLHF_MEMBER Pack operator op(T a, Pack b) { return all_of(a) op b; }
#define RLHF_DO(p) a.p = a.p + b.p;
  RLHF_OPERATOR(+)
#undef RLHF_DO
#define RLHF_DO(p) a.p = a.p - b.p;
  RLHF_OPERATOR(-)
#undef RLHF_DO
#define RLHF_DO(p) a.p = a.p * b.p;
  RLHF_OPERATOR(*)
#undef RLHF_DO
#define RLHF_DO(p) a.p = a.p / b.p;
  RLHF_OPERATOR(/)
#undef RLHF_DO
#undef RLHF_OPERATOR
  friend RLHF_MEMBER Pack operator-(Pack a) {
#define RLHF_DO(p) a.p = -a.p;
    RLHF_EACH(RLHF_DO)
#undef RLHF_DO
    return a;
  }

  static RLHF_MEMBER Pack all_of(T x) {
    Pack lanes;
#define RLHF_DO(p) lanes.p = x - Native{};  /* x + 0 would be an addition: it turns −0 into 0 */
    RLHF_EACH(RLHF_DO)
#undef RLHF_DO
    return lanes;
  }
};

template <typename T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};

// All bits of a lane, or none.
template <typename T>
using PackMask = Pack<typename IntegerOf<T>::type>;

#define RLHF_COMPARISON(op)                                                                              \
  template <typename T>                                                                                  \
  RLHF_LANES PackMask<T> operator op(Pack<T> a, Pack<T> b) {                                             \
    PackMask<T> found;                                                                                   \
    RLHF_EACH(RLHF_DO)                                                                                   \
    return found;                                                                                        \
  }                                                                                                      \
  RLHF_LANES PackMask<float> operator op(Pack<float> a, float b) { return a op Pack<float>::all_of(b); } \
  RLHF_LANES PackMask<double> operator op(Pack<double> a, double b) { return a op Pack<double>::all_of(b); }
#define RLHF_DO(p) found.p = a.p < b.p;
RLHF_COMPARISON(<)
#undef RLHF_DO
#define RLHF_DO(p) found.p = a.p > b.p;
RLHF_COMPARISON(>)
#undef RLHF_DO
#define RLHF_DO(p) found.p = a.p == b.p;
RLHF_COMPARISON(==)
#undef RLHF_DO
#define RLHF_DO(p) found.p = a.p != b.p;
RLHF_COMPARISON(!=)
#undef RLHF_DO
#undef RLHF_COMPARISON

template <typename T>
RLHF_LANES Pack<T> select(PackMask<T> condition, Pack<T> yes, Pack<T> no) {
#define RLHF_DO(p) no.p = condition.p ? yes.p : no.p;
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  return no;
}
RLHF_LANES Pack<float> select(PackMask<float> condition, Pack<float> yes, Pack<float> no) {
  return select<float>(condition, yes, no);
}
RLHF_LANES Pack<double> select(PackMask<double> condition, Pack<double> yes, Pack<double> no) {
  return select<double>(condition, yes, no);
}

template <typename I>
RLHF_LANES Pack<I> both(Pack<I> a, Pack<I> b) {
#define RLHF_DO(p) a.p = a.p & b.p;
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  return a;
}

template <typename To, typename From>
RLHF_LANES To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// Elements rest … rest + width − 1 of a followed by b.
template <int rest, typename N, int width>
RLHF_LANES N straddling(N a, N b) {
  constexpr int r = rest;
  if constexpr (r == 0) {
    return a;
  } else if constexpr (width == 16) {
    return __builtin_shufflevector(a, b, r, r + 1, r + 2, r + 3, r + 4, r + 5, r + 6, r + 7, r + 8, r + 9, r + 10,
                                   r + 11, r + 12, r + 13, r + 14, r + 15);
  } else if constexpr (width == 8) {
    return __builtin_shufflevector(a, b, r, r + 1, r + 2, r + 3, r + 4, r + 5, r + 6, r + 7);
  } else if constexpr (width == 4) {
    return __builtin_shufflevector(a, b, r, r + 1, r + 2, r + 3);
  } else {
    return __builtin_shufflevector(a, b, r, r + 1);
  }
}

// Part i of x followed by next.
template <int i, typename T>
RLHF_LANES typename Pack<T>::Native part_of(Pack<T> x, Pack<T> next) {
  constexpr int parts = Pack<T>::parts;
  if constexpr (i < parts) {
    return x.template at<i>();
  } else if constexpr (i < 2 * parts) {
    return next.template at<i - parts>();
  } else {
    return typename Pack<T>::Native{};
  }
}

// Lane i of the result is lane i + by of x followed by next.
template <int by, int i = 0, typename T>
RLHF_LANES Pack<T> later(Pack<T> x, Pack<T> next = Pack<T>{}) {
  using Native = typename Pack<T>::Native;
  constexpr int width = Pack<T>::width, low = i + by / width;
  Pack<T> moved{};
  if constexpr (i + 1 < Pack<T>::parts) moved = later<by, i + 1>(x, next);
  moved.template at<i>() =
      straddling<by % width, Native, width>(part_of<low>(x, next), part_of<low + 1>(x, next));
  return moved;
}

// --- memory ---------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
using FloatsNative = Pack<float>::Native;
RLHF_LANES void stream_part(void* to, FloatsNative x) {
#if RLHF_WIDTH == 64
  _mm512_stream_ps(static_cast<float*>(to), x);
#elif RLHF_WIDTH == 32
  _mm256_stream_ps(static_cast<float*>(to), x);
#else
  _mm_stream_ps(static_cast<float*>(to), x);
#endif
}
#endif

template <typename T>
RLHF_LANES Pack<T> load(const T* from) {
  Pack<T> lanes;
#define RLHF_DO(p)                          \
  memcpy(&lanes.p, from, sizeof lanes.p); \
  from += Pack<T>::width;
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  return lanes;
}

template <typename T>
RLHF_LANES void store(T* to, Pack<T> lanes) {
#define RLHF_DO(p)                        \
  memcpy(to, &lanes.p, sizeof lanes.p); \
  to += Pack<T>::width;
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
}

// Past the cache, which memory that nobody reads soon would only fill; to an address that is a multiple of 64.
template <typename T>
RLHF_LANES void stream(T* to, Pack<T> lanes) {
#if defined(__x86_64__)
#define RLHF_DO(p)                      \
  stream_part(to, (FloatsNative)lanes.p); \
  to += Pack<T>::width;
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
#else
  store(to, lanes);
#endif
}

// What was streamed is in memory before what follows.
RLHF_LANES void finish_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Lane 0 in every lane.
template <typename T>
RLHF_LANES Pack<T> first_everywhere(Pack<T> x) {
  return Pack<T>::all_of(x.p0[0]);
}

// The lanes [first, first + count) are memory; the others are 0 and not touched.
template <typename T>
RLHF_LANES Pack<T> load_part(const T* from, int64_t count, int64_t first = 0) {
  T lanes[Pack<T>::count] = {};
  memcpy(lanes + first, from, count * sizeof(T));
  return load(lanes);
}
template <typename T>
RLHF_LANES void store_part(T* to, Pack<T> lanes, int64_t count, int64_t first = 0) {
  T memory[Pack<T>::count];
  store(memory, lanes);
  memcpy(to, memory + first, count * sizeof(T));
}

// 0, 1, 2, …
template <typename T>
RLHF_LANES Pack<T> lane_numbers() {
  static constexpr T numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(numbers);
}

// As many bytes as a vector has lanes, each 0 or 1, as numbers. Intrinsics where GCC 12 would go lane by lane.
template <typename Mask>
RLHF_LANES typename Mask::Native widened_bytes(const bool* from) {
#if RLHF_WIDTH == 64
  if constexpr (Mask::width == 16) {
    __m128i bytes;
    memcpy(&bytes, from, 16);
    return (typename Mask::Native)_mm512_cvtepi8_epi32(bytes);
  } else {
    int64_t bytes;
    memcpy(&bytes, from, 8);
    return (typename Mask::Native)_mm512_cvtepi8_epi64(_mm_cvtsi64_si128(bytes));
  }
#elif RLHF_WIDTH == 32
  if constexpr (Mask::width == 8) {
    int64_t bytes;
    memcpy(&bytes, from, 8);
    return (typename Mask::Native)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes));
  } else {
    int32_t bytes;
    memcpy(&bytes, from, 4);
    return (typename Mask::Native)_mm256_cvtepi8_epi64(_mm_cvtsi32_si128(bytes));
  }
#else
  typedef int8_t Bytes __attribute__((vector_size(Mask::width)));
  Bytes bytes;
  memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, typename Mask::Native);
#endif
}

// A byte a lane, 0 or 1, as a mask.
template <typename T>
RLHF_LANES PackMask<T> load_mask(const bool* from) {
  PackMask<T> mask;
#define RLHF_DO(p)                                \
  mask.p = widened_bytes<PackMask<T>>(from) != 0; \
  from += PackMask<T>::width;
  RLHF_EACH(RLHF_DO)
#undef RLHF_DO
  return mask;
}

// The lanes below count, and of them those that the mask names (null: all).
template <typename T>
RLHF_LANES PackMask<T> load_mask_part(const bool* from, int64_t count) {
  bool lanes[Pack<T>::count] = {};
  if (from) {
    memcpy(lanes, from, count);
  } else {
    memset(lanes, 1, count);
  }
  return load_mask<T>(lanes);
}

// --- sums -----------------------------------------------------------------------------------------------------------

RLHF_LANES Pack<double> widened(Pack<double> lanes) { return lanes; }
// Lanes i and i + 8 together, each exact in float64.
template <int i = 0>
RLHF_LANES Pack<double> widened(Pack<float> x) {
  typedef float Half __attribute__((vector_size(RLHF_WIDTH / 2)));
  constexpr int halves = RLHF_WIDTH / 2 / sizeof(float);
  const auto half = [&]<int n>(std::integral_constant<int, n>) -> Half {
    const auto whole = x.template at<n / 2>();
    if constexpr (halves == 8) {
      constexpr int o = n % 2 * 8;
      return __builtin_shufflevector(whole, whole, o, o + 1, o + 2, o + 3, o + 4, o + 5, o + 6, o + 7);
    } else if constexpr (halves == 4) {
      constexpr int o = n % 2 * 4;
      return __builtin_shufflevector(whole, whole, o, o + 1, o + 2, o + 3);
    } else {
      constexpr int o = n % 2 * 2;
      return __builtin_shufflevector(whole, whole, o, o + 1);
    }
  };
  Pack<double> found{};
  if constexpr (i + 1 < Pack<double>::parts) found = widened<i + 1>(x);
  const Half low = half(std::integral_constant<int, i>{});
  const Half high = half(std::integral_constant<int, i + Pack<float>::parts>{});
  found.at<i>() =
      __builtin_convertvector(low, Pack<double>::Native) + __builtin_convertvector(high, Pack<double>::Native);
  return found;
}

RLHF_LANES double sum(Pack<double> x) {
  return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}
RLHF_LANES double sum(Pack<float> x) { return sum(widened(x)); }

template <typename T>
RLHF_LANES T largest(Pack<T> lanes) {
  T found = lanes[0];
  for (int64_t i = 1; i < Pack<T>::count; ++i) found = lanes[i] > found ? lanes[i] : found;
  return found;
}

}  // namespace RLHF_ISA
}  // namespace rlhf
