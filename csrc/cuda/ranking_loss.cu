// The loss of a reward model on rankings, accuracy and gradient (formula: rlhf_core/kernels/ranking_loss.py).
//
// N responses, P prompts of K responses each. A warp or a block takes a prompt, after a kernel that counts
// the prompts with a pair. A thread takes a response i and goes over all others, which the cache holds:
//   count    pairs in which i is the better one; the group adds them up, for the weight 1/(pairs·prompts)
//   compute  terms/ranking.h of every pair that i is in; the loss takes it where i is the better one
//   store    the gradient of s_i, whole: every pair is computed twice, nothing is added up between threads

#include "../terms/ranking.h"

#include "counts.h"
#include "ranking_loss.h"

namespace rlhf::cuda {
namespace {

constexpr int64_t kMaxBlocks = 2048;   // more than fit at once on any device
constexpr int64_t kFewResponses = 64;  // two a lane: up to there a warp is enough for a prompt

struct Workspace {
  Sums<2> parts[kMaxBlocks];
  Counts<1> counts;
};

// Prompts whose ranks are not all the same; a NaN is in no pair.
__global__ void __launch_bounds__(kCountThreads)
    count_prompts(const __grid_constant__ RankingLoss task, Counts<1>* counts) {
  constexpr int kWarps = kCountThreads / kLanes;
  Sums<1> found = {};
  for (int64_t prompt = static_cast<int64_t>(blockIdx.x) * kWarps + warp(); prompt < task.prompts;
       prompt += static_cast<int64_t>(gridDim.x) * kWarps) {
    const Bounds bounds = bounds_of(task.cu_seqlens, prompt, task.responses);
    double best = INFINITY, worst = -INFINITY;
    for (int64_t response = bounds.begin + lane(); response < bounds.end; response += kLanes) {
      best = fmin(best, task.ranks[response]);
      worst = fmax(worst, task.ranks[response]);
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      best = fmin(best, __shfl_xor_sync(kWholeWarp, best, offset));
      worst = fmax(worst, __shfl_xor_sync(kWholeWarp, worst, offset));
    }
    if (lane() == 0 && best < worst) found.of[0] += 1;
  }
  leave(found, counts);
}

// Pairs of a prompt in which the responses of this thread are the better ones.
__device__ __forceinline__ double better_pairs(const RankingLoss& task, const Bounds& bounds, int rank,
                                               int width) {
  int64_t found = 0;
  for (int64_t i = bounds.begin + rank; i < bounds.end; i += width)
    for (int64_t j = bounds.begin; j < bounds.end; ++j) found += task.ranks[i] < task.ranks[j];
  return static_cast<double>(found);
}

__device__ __forceinline__ RankingTerm<float> term_of(const RankingLoss& task, int64_t better,
                                                      int64_t worse) {
  const float margin = task.rating ? task.margin + (task.rating[better] - task.rating[worse]) : task.margin;
  return ranking_term(task.scores[better], task.scores[worse], margin, task.center_coef);
}

// The gradient of s_i for a pair's weight of 1. Adds what pairs give to loss and accuracy where i is better.
__device__ __forceinline__ double add_pairs(const RankingLoss& task, const Bounds& bounds, int64_t i,
                                            double weight, Sums<2>& sums) {
  double gradient = 0, loss = 0, right = 0;
  for (int64_t j = bounds.begin; j < bounds.end; ++j) {
    const bool better = task.ranks[i] < task.ranks[j];
    if (!better && !(task.ranks[j] < task.ranks[i])) continue;
    const RankingTerm<float> term = better ? term_of(task, i, j) : term_of(task, j, i);
    gradient += better ? term.slope_better : term.slope_worse;
    loss += better ? term.value : 0.0f;
    right += better ? term.right : 0.0f;
  }
  sums.of[0] += weight * loss;
  sums.of[1] += weight * right;
  return gradient;
}

template <int kWarps>
__global__ void __launch_bounds__(Group<kWarps>::kThreads, kRoomy / Group<kWarps>::kThreads)
    ranking_loss(const __grid_constant__ RankingLoss task, Workspace* workspace) {
  using G = Group<kWarps>;
  const double prompts =
      task.denominator.given ? value_of(task.denominator) : total<G::kThreads>(&workspace->counts);
  Sums<2> sums = {};
  for (int64_t prompt = G::first(); prompt < task.prompts; prompt += G::step()) {
    const Bounds bounds = bounds_of(task.cu_seqlens, prompt, task.responses);
    const double pairs = group_sum<kWarps>(better_pairs(task, bounds, G::rank(), G::kWidth));
    const double weight = inverse(pairs * prompts);
    for (int64_t i = bounds.begin + G::rank(); i < bounds.end; i += G::kWidth)
      task.grad_scores[i] = static_cast<float>(weight * add_pairs(task, bounds, i, weight, sums));
  }
  if (grid_merged<G::kThreads>(sums, workspace->parts, &workspace->counts.ticket)) {
    *task.loss = static_cast<float>(sums.of[0]);
    *task.accuracy = static_cast<float>(sums.of[1]);
  }
}

template <int kWarps>
cudaError_t start(const RankingLoss& task, Workspace* workspace, cudaStream_t stream) {
  using G = Group<kWarps>;
  return launch(ranking_loss<kWarps>, blocks_for(task.prompts, G::kGroups, kMaxBlocks), G::kThreads, stream,
                task, workspace);
}

cudaError_t count(const RankingLoss& task, Counts<1>* counts, cudaStream_t stream) {
  if (task.denominator.given) return cudaMemsetAsync(&counts->ticket, 0, sizeof(counts->ticket), stream);
  return launch(count_prompts, blocks_for(task.prompts, kCountThreads / kLanes, kMaxCounts), kCountThreads,
                stream, task, counts);
}

}  // namespace
}  // namespace rlhf::cuda

extern "C" size_t rlhf_ranking_loss_workspace() { return sizeof(rlhf::cuda::Workspace); }

extern "C" cudaError_t rlhf_ranking_loss(const rlhf::cuda::RankingLoss* task, void* workspace,
                                         cudaStream_t stream) {
  using namespace rlhf::cuda;
  Workspace* const space = static_cast<Workspace*>(workspace);
  const cudaError_t error = count(*task, &space->counts, stream);
  if (error != cudaSuccess) return error;
  return task->responses <= kFewResponses * task->prompts ? start<1>(*task, space, stream)
                                                          : start<kLong>(*task, space, stream);
}
