// The CUDA side of preference_loss: what a call is made of (formula: rlhf_core/kernels/preference_loss.py).
//
// B pairs. Dense device pointers; a null one stands for an argument that was not given.
#pragma once

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#include "../terms/preference.h"
#include "number.h"

namespace rlhf::cuda {

struct PreferenceLoss {
  int64_t pairs;
  const float* chosen;               // [B]
  const float* rejected;             // [B]
  const float* ref_chosen;           // [B] or null, with ref_rejected: 0
  const float* ref_rejected;         // [B] or null
  const float* chosen_lengths;       // [B] or null, with rejected_lengths: 1
  const float* rejected_lengths;     // [B] or null
  Number denominator;                // or B
  PreferenceOptions<float> options;  // but for z_chosen and z_rejected, which are found on the device
  float* loss;                       // [] out
  float* metrics;                    // [4] out: chosen_reward, rejected_reward, reward_margin, accuracy
  float* grad_chosen;                // [B] out
  float* grad_rejected;              // [B] out
};

}  // namespace rlhf::cuda

extern "C" {
size_t rlhf_preference_loss_workspace();  // bytes; what they hold does not matter
cudaError_t rlhf_preference_loss(const rlhf::cuda::PreferenceLoss* task, void* workspace,
                                 cudaStream_t stream);
}
