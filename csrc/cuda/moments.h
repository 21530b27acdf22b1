// Count, mean and summed squared distance from it, mergeable in any grouping (Chan, Golub, LeVeque 1979).
#pragma once

#include "group.h"

namespace rlhf::cuda {

struct Moments {
  double count, mean, squares;
};

__device__ __forceinline__ Moments merged(const Moments& a, const Moments& b) {
  if (b.count == 0) return a;
  const double count = a.count + b.count, share = b.count / count, distance = b.mean - a.mean;
  return {count, a.mean + distance * share, a.squares + b.squares + distance * distance * (a.count * share)};
}
__device__ __forceinline__ Moments shuffled_down(const Moments& a, int offset) {
  return {__shfl_down_sync(kWholeWarp, a.count, offset), __shfl_down_sync(kWholeWarp, a.mean, offset),
          __shfl_down_sync(kWholeWarp, a.squares, offset)};
}
__device__ __forceinline__ Moments fresh(const Moments* from) {
  return {__ldcg(&from->count), __ldcg(&from->mean), __ldcg(&from->squares)};
}

// The samples of one thread. Sums of distances from the first of them do not cancel as sums of squares do.
struct Samples {
  int count;
  float origin;
  double sum, squares;

  __device__ void add(float sample) {
    origin = count == 0 ? sample : origin;
    const double distance = sample - origin;
    ++count;
    sum += distance;
    squares += distance * distance;
  }
  __device__ Moments moments() const {
    if (count == 0) return {0, 0, 0};
    const double shift = sum / count;
    return {static_cast<double>(count), origin + shift, squares - sum * shift};
  }
};

}  // namespace rlhf::cuda
