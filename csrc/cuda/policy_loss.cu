// The clipped policy loss, metrics and gradients in one pass (formula: rlhf_core/kernels/policy_loss.py).
//
// N packed tokens, B sequences, w_t a token's weight. Two kernels, after one that counts for the weights:
//   tokens     every weight is the same: a thread takes four tokens at a time
//     load       up to nine floats and the mask, 16 bytes a load where the pointers allow it
//     compute    terms/policy.h; sums of four in float32, of threads and blocks in double
//     store      up to three gradients
//   sequences  a warp or a block takes a sequence, for its weight or its ratio are its own
//     n_b and, for a ratio of the sequence, the mean of ℓ; then as above. The ratio of a sequence gives every
//     token of it the same gradient, (1/n_b)·Σ w_t·importance_t·∂objective_t/∂ℓ, which a last pass adds.
// The last block to end adds up what all have left, in order, so that a run repeats bit for bit.

#include "policy_loss.h"

#include <algorithm>

#include "policy_counts.h"
#include "policy_terms.h"

namespace rlhf::cuda {
namespace {

// Tokens: as many blocks as run at once, so that none begins when others end, and each adds up the counts
// only once. Sequences: a block each, for their lengths differ, up to as many as the last block adds up in
// passing.
constexpr int kThreads = 128, kResident = 5;  // of a processor: up to 102 registers a thread
constexpr int64_t kMaxBlocks = 2048;

struct Workspace {
  Totals parts[kMaxBlocks];
  Counts<1> counts;
};

__device__ __forceinline__ PolicyOptions<float> options_of(const PolicyLoss& task) {
  PolicyOptions<float> options = task.options;
  const float mean = value_of(task.mean);
  options.mean = task.mean.given ? mean : 0.0f;
  options.scale = task.mean.given ? 1 / sqrtf(value_of(task.var) + 1e-8f) : 1.0f;
  options.shift = task.mean.given && !task.shift_mean ? mean : 0.0f;
  return options;
}

// By what this call divides: tokens or sequences, here or globally.
template <int kBlock>
__device__ __forceinline__ double divisor_of(const PolicyLoss& task, const Counts<1>* counts) {
  if (task.denominator.given) return value_of(task.denominator);
  const bool counted = task.mask || task.aggregate == Aggregate::sequence;
  return counted ? total<kBlock>(counts) : static_cast<double>(task.tokens);
}

template <int kBlock>
__device__ __forceinline__ void finish(const PolicyLoss& task, Totals totals, Workspace* workspace) {
  if (!grid_merged<kBlock>(totals, workspace->parts, &workspace->counts.ticket)) return;
  const double* const sum = totals.sums.of;
  const double each = inverse(sum[Totals::kCount]);
  const PolicyOptions<float>& options = task.options;
  *task.loss =
      static_cast<float>(sum[Totals::kPolicy] + options.value_coef * sum[Totals::kValue] -
                         options.entropy_coef * sum[Totals::kEntropy] + options.kl_coef * sum[Totals::kKl]);
  task.metrics[0] = static_cast<float>(sum[Totals::kPolicy]);
  task.metrics[1] = static_cast<float>(sum[Totals::kValue]);
  task.metrics[2] = static_cast<float>(sum[Totals::kEntropy]);
  task.metrics[3] = static_cast<float>(sum[Totals::kKl]);
  task.metrics[4] = static_cast<float>(sum[Totals::kApproxKl] * each);
  task.metrics[5] = static_cast<float>(sum[Totals::kClipped] * each);
  task.metrics[6] = static_cast<float>(sum[Totals::kRatio] * each);
  task.metrics[7] = static_cast<float>(totals.ratio_max);
  task.metrics[8] = static_cast<float>(sum[Totals::kValueClipped] * each);
}

__global__ void __launch_bounds__(kThreads, kResident)
    tokens_kernel(const __grid_constant__ PolicyLoss task, bool aligned, Workspace* workspace) {
  const PolicyOptions<float> options = options_of(task);
  const double weight = inverse(divisor_of<kThreads>(task, &workspace->counts));
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kFew;
  Totals totals = {};
  Tally tally = {};
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kFew;
       first < task.tokens; first += step) {
    const Place place = {first, 1, task.tokens};
    const bool vector = aligned && first + kFew <= task.tokens;
    const Tokens tokens = vector ? load<true>(task, place) : load<false>(task, place);
    Few few = {};
    const Gradients gradients = terms_of(task, options, tokens, {}, static_cast<float>(weight), few, tally);
    vector ? store<true>(task, place, gradients) : store<false>(task, place, gradients);
    totals.add(few, weight);
  }
  finish<kThreads>(task, tally.with(totals), workspace);
}

// The valid tokens of a sequence, and the mean of ℓ over them.
struct OfSequence {
  double count, log_ratio;
};
template <int kWarps>
__device__ __forceinline__ OfSequence look_at(const PolicyLoss& task, const Bounds& bounds) {
  double count = bounds.end - bounds.begin, sum = 0;
  const bool needs_ratio = task.level == Level::sequence;
  if (!task.mask && !needs_ratio) return {count, 0};
  int mine = 0;
  for (int64_t token = bounds.begin + Group<kWarps>::rank(); token < bounds.end;
       token += Group<kWarps>::kWidth) {
    const float log_ratio = needs_ratio ? task.logprobs[token] - task.old_logprobs[token] : 0.0f;
    const bool valid = !task.mask || task.mask[token] != 0;
    mine += valid;
    sum += valid ? log_ratio : 0.0f;
  }
  count = group_sum<kWarps>(mine);
  return {count, needs_ratio ? group_sum<kWarps>(sum) * inverse(count) : 0};
}

template <int kWarps>
__global__ void __launch_bounds__(Group<kWarps>::kThreads, kRoomy / Group<kWarps>::kThreads)
    sequences_kernel(const __grid_constant__ PolicyLoss task, Workspace* workspace) {
  using G = Group<kWarps>;
  const PolicyOptions<float> options = options_of(task);
  const double divisor = divisor_of<G::kThreads>(task, &workspace->counts);
  Totals totals = {};
  Tally tally = {};
  for (int64_t sequence = G::first(); sequence < task.sequences; sequence += G::step()) {
    const Bounds bounds = bounds_of(task.cu_seqlens, sequence, task.tokens);
    const OfSequence found = look_at<kWarps>(task, bounds);
    const double weight = inverse(task.aggregate == Aggregate::sequence ? divisor * found.count : divisor);
    const SharedRatio shared = {task.level == Level::sequence, ratio_of(static_cast<float>(found.log_ratio))};
    double slope = 0;
    for (int64_t first = bounds.begin + G::rank(); first < bounds.end; first += kFew * G::kWidth) {
      const Place place = {first, G::kWidth, bounds.end};
      const Tokens tokens = load<false>(task, place);
      Few few = {};
      const Gradients gradients =
          terms_of(task, options, tokens, shared, static_cast<float>(weight), few, tally);
      store<false>(task, place, gradients);
      totals.add(few, weight);
      slope += few.slope;
    }
    if (!shared.given || options.cispo) continue;
    const float each = static_cast<float>(-weight * group_sum<kWarps>(slope) * inverse(found.count));
    for (int64_t token = bounds.begin + G::rank(); token < bounds.end; token += G::kWidth)
      if (!task.mask || task.mask[token] != 0) task.grad_logprobs[token] += each;  // the thread that wrote it
  }
  finish<G::kThreads>(task, tally.with(totals), workspace);
}

bool aligned(const PolicyLoss& task) {
  const float* const all[] = {task.logprobs,   task.old_logprobs,  task.advantages,  task.values,
                              task.old_values, task.returns,       task.entropy,     task.ref_logprobs,
                              task.importance, task.grad_logprobs, task.grad_values, task.grad_entropy};
  uintptr_t bits = reinterpret_cast<uintptr_t>(task.mask) % sizeof(unsigned);
  for (const float* pointer : all) bits |= reinterpret_cast<uintptr_t>(pointer) % sizeof(float4);
  return bits == 0;
}

cudaError_t count(const PolicyLoss& task, Counts<1>* counts, cudaStream_t stream) {
  if (!task.denominator.given && task.aggregate == Aggregate::sequence)
    return start_count(task.mask, task.cu_seqlens, task.sequences, task.tokens, counts, stream);
  if (!task.denominator.given && task.mask) return start_count(task.mask, task.tokens, counts, stream);
  return cudaMemsetAsync(&counts->ticket, 0, sizeof(counts->ticket), stream);
}

template <int kWarps>
cudaError_t start(const PolicyLoss& task, Workspace* workspace, cudaStream_t stream) {
  using G = Group<kWarps>;
  return launch(sequences_kernel<kWarps>, blocks_for(task.sequences, G::kGroups, kMaxBlocks), G::kThreads,
                stream, task, workspace);
}

}  // namespace
}  // namespace rlhf::cuda

extern "C" size_t rlhf_policy_loss_workspace() { return sizeof(rlhf::cuda::Workspace); }

extern "C" cudaError_t rlhf_policy_loss(const rlhf::cuda::PolicyLoss* task, void* workspace,
                                        cudaStream_t stream) {
  using namespace rlhf::cuda;
  Workspace* const space = static_cast<Workspace*>(workspace);
  const cudaError_t error = count(*task, &space->counts, stream);
  if (error != cudaSuccess) return error;
  if (task->level == Level::sequence || task->aggregate == Aggregate::sequence)
    return warp_each(task->tokens, task->sequences) ? start<1>(*task, space, stream)
                                                    : start<kLong>(*task, space, stream);
  const int64_t most = std::clamp<int64_t>(kResident * processors(), 1, kMaxBlocks);
  return launch(tokens_kernel, blocks_for(task->tokens, kThreads * kFew, most), kThreads, stream, *task,
                aligned(*task), space);
}
