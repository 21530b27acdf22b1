// The CUDA side of shaped_gae: what a call is made of (formula: rlhf_core/kernels/gae.py).
//
// N packed tokens, B sequences. Dense device pointers; a null one stands for an argument that was not given.
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include "../terms/kl.h"

namespace rlhf::cuda {

struct ShapedGae {
  int64_t tokens, sequences;
  const int32_t* cu_seqlens;  // [B+1]
  const float* scores;        // [B]
  const float* values;        // [N]
  const uint8_t* mask;        // [N] or null: all true
  const float* rewards;       // [N] or null
  const float* logprobs;      // [N] or null, with ref_logprobs
  const float* ref_logprobs;  // [N] or null
  const float* bootstrap;     // [B] or null: 0
  float gamma, gamma_lam, kl_coef;
  float score_clip;  // infinity: not clipped
  KlEstimator estimator;
  float* advantages;  // [N] out
  float* returns;     // [N] out
  float* kl;          // [N] out
  int64_t* count;     // [] out
  float* mean;        // [] out
  float* var;         // [] out
};

}  // namespace rlhf::cuda

extern "C" {
size_t rlhf_shaped_gae_workspace();  // bytes; what they hold does not matter
cudaError_t rlhf_shaped_gae(const rlhf::cuda::ShapedGae* task, void* workspace, cudaStream_t stream);
}
