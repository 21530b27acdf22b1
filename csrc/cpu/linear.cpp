// Blocks of linear.h. Compiled once an instruction set (isa.h).

#include "linear.h"

#include "tiles.h"

namespace rlhf::cpu::RLHF_ISA {

using namespace ::rlhf::RLHF_ISA;

namespace {

template <typename E>
void pack(const Linear<E>& task, char* memory) {
  const int64_t lanes = round_up(task.rows, kStep);
  Scratch scratch{memory};
  E* zeros = scratch.take<E>(task.size);
  const E** rows = scratch.take<const E*>(lanes);
  memset(zeros, 0, task.size * sizeof(E));
  for (int64_t i = 0; i < lanes; ++i) rows[i] = i < task.rows ? task.x + i * task.x_row : zeros;
  pack_transposed_paired(rows, lanes, task.size, task.packed, lanes);
}

// Outputs [first, first + kOutputs) of all rows.
template <typename E>
void run(const Linear<E>& task, int64_t first, char* memory) {
  using T = Wide<E>;
  using V = Pack<T>;
  const int64_t lanes = round_up(task.rows, kStep), count = lesser(kOutputs, task.outputs - first);
  Scratch scratch{memory};
  T* block = scratch.take<T>(kOutputs * lanes);
  E* copy = scratch.take<E>(kOutputs * task.size);
  T* row = scratch.take<T>(kStep * kOutputs);
  const E* weight = task.weight + first * task.size;
  const int64_t padded = round_up(count, kStep);
  if (padded > count) {  // a product takes whole steps, and must not read past the weights
    memset(copy, 0, padded * task.size * sizeof(E));
    memcpy(copy, weight, count * task.size * sizeof(E));
    weight = copy;
  }
  task.product(padded, lanes, task.size, task.size, lanes, lanes, false, weight, task.packed, block);
  for (int64_t from = 0; from < task.rows; from += kStep) {
    for (int64_t i = 0; i < padded; i += kStep) {
      const Unit<T>* rows[kStep];
      for (int64_t j = 0; j < kStep; ++j)
        rows[j] = reinterpret_cast<const Unit<T>*>(block + (i + j) * lanes + from);
      transpose(rows, kStep, reinterpret_cast<Unit<T>*>(row + i), kOutputs);
    }
    for (int64_t lane = from; lane < lesser(from + kStep, task.rows); ++lane) {
      E* to = task.out + lane * task.outputs + first;
      const T* of = row + (lane - from) * kOutputs;
      for (int64_t i = 0; i < count; i += V::count) {
        V x = load(of + i);
        if (count - i >= V::count) {
          if (task.bias) x = x + load_wide(task.bias + first + i);
          store_narrow(to + i, x);
          continue;
        }
        E held[V::count] = {};
        if (task.bias) {
          memcpy(held, task.bias + first + i, (count - i) * sizeof(E));
          x = x + load_wide(held);
        }
        store_narrow(held, x);
        memcpy(to + i, held, (count - i) * sizeof(E));
      }
    }
  }
}

template <typename E>
int64_t scratch_bytes(const Linear<E>& task) {
  const int64_t lanes = round_up(task.rows, kStep);
  return static_cast<int64_t>(sizeof(Wide<E>)) * (kOutputs * (lanes + kStep) + (kOutputs + 1) * task.size) +
         static_cast<int64_t>(sizeof(void*)) * lanes + 8 * 64;
}

}  // namespace

#define RLHF_DEFINE(E)                                                            \
  int64_t linear_scratch(const Linear<E>& task) { return scratch_bytes(task); }   \
  void pack_linear(const Linear<E>& task, char* scratch) { pack(task, scratch); } \
  void linear(const Linear<E>& task, int64_t first, char* scratch) { run(task, first, scratch); }
RLHF_DEFINE(float)
RLHF_DEFINE(Bf16)
RLHF_DEFINE(double)
#undef RLHF_DEFINE

}  // namespace rlhf::cpu::RLHF_ISA
