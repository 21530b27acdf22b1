// What a thread of policy_loss.cu does with four tokens: load, compute (terms/policy.h), store.
#pragma once

#include "../terms/policy.h"
#include "group.h"
#include "policy_loss.h"
#include "reduce.h"

namespace rlhf::cuda {

constexpr int kFew = 4;  // one load of 16 bytes, where the pointers allow it

// The four tokens are first + i·step; those at `end` and after it are absent. kVector: step is 1, all are
// there, and every pointer is aligned to four elements.
struct Place {
  int64_t first, step, end;
};

struct Tokens {
  float logprob[kFew], old_logprob[kFew], advantage[kFew], value[kFew], old_value[kFew], target[kFew],
      entropy[kFew], reference[kFew], importance[kFew];
  bool valid[kFew];
};

template <bool kVector>
__device__ __forceinline__ void load(const float* from, const Place& place, float (&to)[kFew]) {
  if constexpr (kVector) {
    const float4 four = *reinterpret_cast<const float4*>(from + place.first);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
#pragma unroll
    for (int i = 0; i < kFew; ++i) {
      const int64_t token = place.first + i * place.step;
      to[i] = token < place.end ? from[token] : 0.0f;
    }
  }
}

template <bool kVector>
__device__ __forceinline__ void load_valid(const uint8_t* mask, const Place& place, bool (&to)[kFew]) {
  unsigned four = 0x01010101u;
  if (kVector && mask) four = *reinterpret_cast<const unsigned*>(mask + place.first);
#pragma unroll
  for (int i = 0; i < kFew; ++i) {
    const int64_t token = place.first + i * place.step;
    to[i] = kVector ? (four >> (8 * i) & 0xffu) != 0 : token < place.end && (!mask || mask[token] != 0);
  }
}

template <bool kVector>
__device__ __forceinline__ Tokens load(const PolicyLoss& task, const Place& place) {
  Tokens tokens = {};
  load<kVector>(task.logprobs, place, tokens.logprob);
  load<kVector>(task.old_logprobs, place, tokens.old_logprob);
  load<kVector>(task.advantages, place, tokens.advantage);
  if (task.values) load<kVector>(task.values, place, tokens.value);
  if (task.values) load<kVector>(task.returns, place, tokens.target);
  if (task.old_values) load<kVector>(task.old_values, place, tokens.old_value);
  if (task.entropy) load<kVector>(task.entropy, place, tokens.entropy);
  if (task.ref_logprobs) load<kVector>(task.ref_logprobs, place, tokens.reference);
  if (task.importance) load<kVector>(task.importance, place, tokens.importance);
  load_valid<kVector>(task.mask, place, tokens.valid);
  return tokens;
}

struct Gradients {
  float logprob[kFew], value[kFew], entropy[kFew];
};

template <bool kVector>
__device__ __forceinline__ void store(float* to, const Place& place, const float (&from)[kFew]) {
  if constexpr (kVector) {
    *reinterpret_cast<float4*>(to + place.first) = float4{from[0], from[1], from[2], from[3]};
  } else {
#pragma unroll
    for (int i = 0; i < kFew; ++i) {
      const int64_t token = place.first + i * place.step;
      if (token < place.end) to[token] = from[i];
    }
  }
}

template <bool kVector>
__device__ __forceinline__ void store(const PolicyLoss& task, const Place& place,
                                      const Gradients& gradients) {
  store<kVector>(task.grad_logprobs, place, gradients.logprob);
  if (task.values) store<kVector>(task.grad_values, place, gradients.value);
  if (task.entropy) store<kVector>(task.grad_entropy, place, gradients.entropy);
}

// Of four tokens, in float32: sums that long ones take in as doubles.
struct Few {
  float policy, value, entropy, kl, approx_kl, ratio;
  float slope;  // of the objective by a ratio that the sequence shares, times importance
};

// Of a thread, and of everything in the end.
struct Totals {
  enum { kPolicy, kValue, kEntropy, kKl, kApproxKl, kRatio, kClipped, kValueClipped, kCount, kSums };
  Sums<kSums> sums;
  double ratio_max;

  __device__ void add(const Few& few, double weight) {
    sums.of[kPolicy] += weight * few.policy;
    sums.of[kValue] += weight * few.value;
    sums.of[kEntropy] += weight * few.entropy;
    sums.of[kKl] += weight * few.kl;
    sums.of[kApproxKl] += few.approx_kl;
    sums.of[kRatio] += few.ratio;
  }
};

// A NaN is larger than all, as in torch.max.
__device__ __forceinline__ double larger(double a, double b) { return b > a || b != b ? b : a; }
__device__ __forceinline__ Totals merged(const Totals& a, const Totals& b) {
  return {merged(a.sums, b.sums), larger(a.ratio_max, b.ratio_max)};
}
__device__ __forceinline__ Totals shuffled_down(const Totals& a, int offset) {
  return {shuffled_down(a.sums, offset), __shfl_down_sync(kWholeWarp, a.ratio_max, offset)};
}
__device__ __forceinline__ Totals fresh(const Totals* from) {
  return {fresh(&from->sums), __ldcg(&from->ratio_max)};
}

// What the tokens of a thread count besides.
struct Tally {
  int count, clipped, value_clipped;
  float ratio_max;

  __device__ Totals with(Totals totals) const {
    totals.sums.of[Totals::kCount] = count;
    totals.sums.of[Totals::kClipped] = clipped;
    totals.sums.of[Totals::kValueClipped] = value_clipped;
    totals.ratio_max = ratio_max;
    return totals;
  }
};

// The ratio of a whole sequence, where it has one.
struct SharedRatio {
  bool given;
  Ratio<float> ratio;
};

// Gradients of four tokens of one weight. The slope of a clipped objective by a shared ratio goes to
// few.slope instead of the token's own gradient.
__device__ __forceinline__ Gradients terms_of(const PolicyLoss& task, const PolicyOptions<float>& options,
                                              const Tokens& tokens, const SharedRatio& shared, float weight,
                                              Few& few, Tally& tally) {
  Gradients gradients = {};
#pragma unroll
  for (int i = 0; i < kFew; ++i) {
    if (!tokens.valid[i]) continue;
    const float logprob = tokens.logprob[i], importance = task.importance ? tokens.importance[i] : 1.0f;
    const Ratio<float> ratio = shared.given ? shared.ratio : ratio_of(logprob - tokens.old_logprob[i]);
    const float advantage = (tokens.advantage[i] - options.mean) * options.scale + options.shift;
    const Objective<float> objective = objective_of(ratio, advantage, logprob, options);
    const float slope = importance * objective.slope;
    const bool own = !shared.given || options.cispo;
    few.policy -= importance * objective.value;
    few.slope += own ? 0.0f : slope;
    few.approx_kl += ratio.approx_kl;
    few.ratio += ratio.value;
    ++tally.count;
    tally.clipped += objective.clipped;
    tally.ratio_max =
        ratio.value > tally.ratio_max || ratio.value != ratio.value ? ratio.value : tally.ratio_max;
    gradients.logprob[i] = own ? -weight * slope : 0.0f;
    if (task.ref_logprobs) {
      const KlTerm<float> kl = kl_term(logprob - tokens.reference[i], options.estimator);
      few.kl += kl.value;
      gradients.logprob[i] += options.kl_coef * weight * kl.slope;
    }
    if (task.values) {
      const float value = tokens.value[i], old = task.old_values ? tokens.old_value[i] : value;
      const ValueError<float> error = value_error(value, old, tokens.target[i], options);
      few.value += error.value;
      tally.value_clipped += error.clipped;
      gradients.value[i] = options.value_coef * weight * error.slope;
    }
    few.entropy += tokens.entropy[i];
    gradients.entropy[i] = -options.entropy_coef * weight;
  }
  return gradients;
}

}  // namespace rlhf::cuda
