// The CUDA side of policy_loss: what a call is made of (formula: rlhf_core/kernels/policy_loss.py).
//
// N packed tokens, B sequences. Dense device pointers; a null one stands for an argument that was not given.
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include "../terms/policy.h"
#include "number.h"

namespace rlhf::cuda {

enum class Aggregate { token, sequence, constant };  // aggregate.py
enum class Level { token, sequence };                // of the ratio

struct PolicyLoss {
  int64_t tokens, sequences;
  const float* logprobs;      // [N]
  const float* old_logprobs;  // [N]
  const float* advantages;    // [N]
  const uint8_t* mask;        // [N] or null: all true
  const float* values;        // [N] or null, with returns
  const float* old_values;    // [N] or null: not clipped
  const float* returns;       // [N] or null
  const float* entropy;       // [N] or null
  const float* ref_logprobs;  // [N] or null
  const float* importance;    // [N] or null: 1
  const int32_t* cu_seqlens;  // [B+1], or null where neither the level nor the aggregate is the sequence
  Number mean, var;           // of the advantages; both or neither
  Number denominator;         // or this call's own count
  Level level;
  Aggregate aggregate;
  bool shift_mean;
  PolicyOptions<float> options;  // but for its mean, scale and shift, which are known on the device
  float* loss;                   // [] out
  float* metrics;                // [9] out, as policy_loss.METRICS has them
  float* grad_logprobs;          // [N] out
  float* grad_values;            // [N] out, or null where values is
  float* grad_entropy;           // [N] out, or null where entropy is
};

}  // namespace rlhf::cuda

extern "C" {
size_t rlhf_policy_loss_workspace();  // bytes; what they hold does not matter
cudaError_t rlhf_policy_loss(const rlhf::cuda::PolicyLoss* task, void* workspace, cudaStream_t stream);
}
