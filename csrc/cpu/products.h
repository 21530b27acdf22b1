// Matrix products of tiles, which kernels are given as a function: oneDNN's, by way of torch
// (products_op.cpp), made for the processor at run time. So a kernel source needs no torch header, and no
// instruction set of its own for products.
#pragma once

#include <stdint.h>

namespace rlhf::cpu {

struct Bf16 {
  uint16_t bits;
};

// What products of E accumulate into, and what everything between them is computed in.
template <typename E>
struct WideOf {
  using type = E;
};
template <>
struct WideOf<Bf16> {
  using type = float;
};
template <typename E>
using Wide = typename WideOf<E>::type;

// The least that moves: a number, or two of bfloat16.
template <typename E>
struct UnitOf {
  using type = uint32_t;
};
template <>
struct UnitOf<double> {
  using type = uint64_t;
};
template <typename E>
using Unit = typename UnitOf<E>::type;

// How many numbers a unit holds.
template <typename E>
constexpr int64_t kPair = sizeof(Unit<E>) / sizeof(E);

// C[m×n] = A[m×k]·B[k×n], or added to C. Row-major, lda … in numbers, except that B lies in pairs of rows,
// [k/2][n][2], where E is bfloat16 (then ldb counts units): the layout that its products multiply.
template <typename E>
using Product = void (*)(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
                         const E* a, const Unit<E>* b, Wide<E>* c);

template <typename E>
Product<E> product();

// After a thread's last product: gives back what some processors keep for them (AMX tiles).
void release_products();

// Whether this processor multiplies bfloat16 by instruction; elsewhere it is widened first.
bool has_bf16_products();

}  // namespace rlhf::cpu

// What a kernel's header declares for an instruction set (isa.h), by RLHF_DECLARE_FOR(E), once for each type of number.
#define RLHF_DECLARE_TYPES(ISA) \
  namespace ISA {               \
  RLHF_DECLARE_FOR(float)       \
  RLHF_DECLARE_FOR(Bf16)        \
  RLHF_DECLARE_FOR(double)      \
  }
