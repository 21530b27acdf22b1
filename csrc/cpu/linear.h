// x·Wᵀ + b for a few rows of x, as decoding has them: weights are read as they lie, which libraries rearrange
// first, once a call. Transposed as in attention.h, a lane being a row.
#pragma once

#include <stdint.h>

#include "isa.h"
#include "products.h"

namespace rlhf::cpu {

constexpr int64_t kOutputs = 64;  // of a block

template <typename E>
struct Linear {
  const E *x, *weight, *bias;  // [rows, size], [outputs, size] dense, [outputs] or null
  int64_t x_row, rows, size, outputs;
  Product<E> product;
  Unit<E>* packed;  // xᵀ [size/pair][rows rounded up to 16], filled by pack_linear
  E* out;           // [rows, outputs]
};

#define RLHF_DECLARE_FOR(E)                               \
  int64_t linear_scratch(const Linear<E>& task);          \
  void pack_linear(const Linear<E>& task, char* scratch); \
  void linear(const Linear<E>& task, int64_t first, char* scratch);

RLHF_ISAS(RLHF_DECLARE_TYPES)
#undef RLHF_DECLARE_FOR

}  // namespace rlhf::cpu
