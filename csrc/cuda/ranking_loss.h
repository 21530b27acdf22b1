// The CUDA side of ranking_loss: what a call is made of (formula: rlhf_core/kernels/ranking_loss.py).
//
// N responses, P prompts. Dense device pointers; a null one stands for an argument that was not given.
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include "number.h"

namespace rlhf::cuda {

struct RankingLoss {
  int64_t responses, prompts;
  const float* scores;        // [N]
  const int32_t* cu_seqlens;  // [P+1]
  const double* ranks;        // [N] smaller is better
  const float* rating;        // [N] or null: what a pair's margin is the difference of, beside the one below
  Number denominator;         // or the prompts of this call that have a pair
  float margin, center_coef;
  float* loss;         // [] out
  float* accuracy;     // [] out
  float* grad_scores;  // [N] out
};

}  // namespace rlhf::cuda

extern "C" {
size_t rlhf_ranking_loss_workspace();  // bytes; what they hold does not matter
cudaError_t rlhf_ranking_loss(const rlhf::cuda::RankingLoss* task, void* workspace, cudaStream_t stream);
}
