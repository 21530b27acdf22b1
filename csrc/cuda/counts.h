// A count, or sums, that a kernel needs whole before it starts: a small kernel before it leaves a part a
// block, and every block of the kernel adds all parts up, which spares a launch in between.
#pragma once

#include "launch.h"
#include "reduce.h"

namespace rlhf::cuda {

constexpr int kCountThreads = 256;
constexpr int kMaxCounts = 256;  // one or two a thread of whoever adds them up

template <int kSums>
struct Counts {
  Sums<kSums> parts[kMaxCounts];
  unsigned number;  // of parts in use
  unsigned ticket;  // of the next kernel: this is the place to clear it
};

// Ends a kernel of kCountThreads.
template <int kSums>
__device__ __forceinline__ void leave(Sums<kSums> mine, Counts<kSums>* counts) {
  mine = block_merged<kCountThreads>(mine);
  if (threadIdx.x != 0) return;
  counts->parts[blockIdx.x] = mine;
  if (blockIdx.x == 0) counts->number = gridDim.x, counts->ticket = 0;
}

// One of the sums, known to all threads of a block of kThreads.
template <int kThreads, int kSums>
__device__ __forceinline__ double total(const Counts<kSums>* counts, int which = 0) {
  double mine = 0;
  for (unsigned part = threadIdx.x; part < counts->number; part += kThreads)
    mine += counts->parts[part].of[which];
  return group_sum<kThreads / kLanes>(mine);
}

}  // namespace rlhf::cuda
