// Schemas and registration. Formulas, shapes and units are in rlhf_core/kernels/, one file an op.

#include "ops.h"

#include <torch/library.h>

TORCH_LIBRARY(rlhf, library) {
  library.def(
      "shaped_gae(Tensor scores, Tensor values, Tensor cu_seqlens, Tensor? mask, Tensor? rewards, Tensor? "
      "logprobs, "
      "Tensor? ref_logprobs, Tensor? bootstrap, float gamma, float lam, float kl_coef, str kl_estimator, "
      "float? score_clip) -> (Tensor advantages, Tensor returns, Tensor kl, Tensor count, Tensor mean, "
      "Tensor var)");
}

TORCH_LIBRARY_IMPL(rlhf, CPU, library) { library.impl("shaped_gae", &rlhf::shaped_gae_cpu); }
