// The loss of a reward model on ranked groups, with its gradient (formula: rlhf_core/kernels/ranking_loss.py).
//
// N responses, P prompts. Pointers are dense; a null one stands for an argument that was not given.
#pragma once

#include <stdint.h>

#include "../terms/ranking.h"
#include "isa.h"

namespace rlhf::cpu {

template <typename T>
struct RankingLoss {
  int64_t responses;          // N
  const T* scores;            // [N]
  const int32_t* cu_seqlens;  // [P+1]
  const double* ranks;        // [N]
  const T* rating;            // [N] or null
  T margin, center_coef;
  T* order;        // [N] scratch: how many responses of its group are ranked better than this one
  T* grad_scores;  // [N] out
};

struct RankingSums {
  double loss, accuracy;  // a prompt's means
};

#define RLHF_DECLARE(ISA)                                                                                          \
  namespace ISA {                                                                                                  \
  /* Fills order and the numbers of pairs [P] of the prompts [first, last). */                                     \
  void ranking_order(const RankingLoss<float>& task, int64_t first, int64_t last, int64_t* pairs);                 \
  void ranking_order(const RankingLoss<double>& task, int64_t first, int64_t last, int64_t* pairs);                \
  /* Fills the gradients, for a weight 1/prompts of each prompt, and the sums [P]. */                              \
  void ranking_loss(const RankingLoss<float>& task, int64_t first, int64_t last, const int64_t* pairs,             \
                    double prompts, RankingSums* sums);                                                            \
  void ranking_loss(const RankingLoss<double>& task, int64_t first, int64_t last, const int64_t* pairs,            \
                    double prompts, RankingSums* sums);                                                            \
  }
RLHF_ISAS(RLHF_DECLARE)
#undef RLHF_DECLARE

}  // namespace rlhf::cpu
