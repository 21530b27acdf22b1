// Losses on pairs of responses, metrics and gradients (formula: rlhf_core/kernels/preference_loss.py).
//
// B pairs, a thread a pair: load up to six floats, compute (terms/preference.h), store two gradients. Sums
// are of doubles, in a fixed order. kto compares with means over the batch, which a kernel before finds.

#include "preference_loss.h"

#include "counts.h"

namespace rlhf::cuda {
namespace {

constexpr int64_t kMaxBlocks = 1024;  // 262 144 pairs at once

struct Workspace {
  Sums<5> parts[kMaxBlocks];
  Counts<2> sums;  // of the log-ratios
};

struct LogRatio {
  float value, slope;  // slope: by the log-prob
};
__device__ __forceinline__ LogRatio log_ratio(const float* own, const float* reference, const float* lengths,
                                              int64_t pair) {
  const float length = lengths ? fmaxf(lengths[pair], 1.0f) : 1.0f;
  const float ratio = reference ? own[pair] - reference[pair] : own[pair];
  return {ratio / length, 1 / length};
}
__device__ __forceinline__ LogRatio of_chosen(const PreferenceLoss& task, int64_t pair) {
  return log_ratio(task.chosen, task.ref_chosen, task.chosen_lengths, pair);
}
__device__ __forceinline__ LogRatio of_rejected(const PreferenceLoss& task, int64_t pair) {
  return log_ratio(task.rejected, task.ref_rejected, task.rejected_lengths, pair);
}

__device__ __forceinline__ int64_t first_pair() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t step_of_pairs() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

__global__ void __launch_bounds__(kCountThreads)
    sum_log_ratios(const __grid_constant__ PreferenceLoss task, Counts<2>* sums) {
  Sums<2> mine = {};
  for (int64_t pair = first_pair(); pair < task.pairs; pair += step_of_pairs()) {
    mine.of[0] += of_chosen(task, pair).value;
    mine.of[1] += of_rejected(task, pair).value;
  }
  leave(mine, sums);
}

__device__ __forceinline__ float kto_z(const Counts<2>* sums, int which, double pairs) {
  return static_cast<float>(at_least(total<kCountThreads>(sums, which) / pairs, 0.0));
}

__global__ void __launch_bounds__(kCountThreads)
    preference_loss(const __grid_constant__ PreferenceLoss task, Workspace* workspace) {
  const double pairs = task.pairs < 1 ? 1 : static_cast<double>(task.pairs);
  const double weight = inverse(task.denominator.given ? value_of(task.denominator) : pairs);
  PreferenceOptions<float> options = task.options;
  if (options.kind == PreferenceKind::kto) {
    options.z_chosen = kto_z(&workspace->sums, 0, pairs);
    options.z_rejected = kto_z(&workspace->sums, 1, pairs);
  }
  Sums<5> sums = {};
  for (int64_t pair = first_pair(); pair < task.pairs; pair += step_of_pairs()) {
    const LogRatio c = of_chosen(task, pair), r = of_rejected(task, pair);
    const PreferenceTerm<float> term = preference_term(c.value, r.value, options);
    task.grad_chosen[pair] = static_cast<float>(weight * (term.slope_chosen * c.slope));
    task.grad_rejected[pair] = static_cast<float>(weight * (term.slope_rejected * r.slope));
    sums.of[0] += term.value;
    sums.of[1] += options.beta * c.value;
    sums.of[2] += options.beta * r.value;
    sums.of[3] += options.beta * (c.value - r.value);
    sums.of[4] += c.value > r.value ? 1.0 : c.value == r.value ? 0.5 : 0.0;
  }
  if (!grid_merged<kCountThreads>(sums, workspace->parts, &workspace->sums.ticket)) return;
  *task.loss = static_cast<float>(weight * sums.of[0]);
#pragma unroll
  for (int metric = 0; metric < 4; ++metric)
    task.metrics[metric] = static_cast<float>(weight * sums.of[metric + 1]);
}

cudaError_t prepare(const PreferenceLoss& task, Counts<2>* sums, cudaStream_t stream) {
  if (task.options.kind != PreferenceKind::kto)
    return cudaMemsetAsync(&sums->ticket, 0, sizeof(sums->ticket), stream);
  return launch(sum_log_ratios, blocks_for(task.pairs, kCountThreads, kMaxCounts), kCountThreads, stream,
                task, sums);
}

}  // namespace
}  // namespace rlhf::cuda

extern "C" size_t rlhf_preference_loss_workspace() { return sizeof(rlhf::cuda::Workspace); }

extern "C" cudaError_t rlhf_preference_loss(const rlhf::cuda::PreferenceLoss* task, void* workspace,
                                            cudaStream_t stream) {
  using namespace rlhf::cuda;
  Workspace* const space = static_cast<Workspace*>(workspace);
  const cudaError_t error = prepare(*task, &space->sums, stream);
  if (error != cudaSuccess) return error;
  return launch(preference_loss, blocks_for(task->pairs, kCountThreads, kMaxBlocks), kCountThreads, stream,
                *task, space);
}
