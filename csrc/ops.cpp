// Schemas. Formulas, shapes and units are in rlhf_core/kernels/, one file an op; each op's own file in cpu/ and cuda/
// registers what computes it there. Losses give their gradients too, for an upstream gradient of 1.

#include <torch/library.h>

TORCH_LIBRARY(rlhf, library) {
  library.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, Tensor? responses_per_prompt, float scale, "
      "bool causal, int? window) -> (Tensor out, Tensor lse)");
  library.def(
      "attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "Tensor cu_seqlens, Tensor? responses_per_prompt, float scale, bool causal, int? window) "
      "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");
  library.def(
      "token_logprobs(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, float temperature, bool entropy) "
      "-> (Tensor logprobs, Tensor entropies, Tensor lse)");
  library.def(
      "token_logprobs_backward(Tensor grad_logprobs, Tensor? grad_entropies, Tensor hidden, Tensor weight, "
      "Tensor targets, Tensor? bias, Tensor lse, Tensor entropies, float temperature) "
      "-> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)");
  // Of some rows, with their logits [V, rows] kept for the second op, which adds to grad_weight and grad_bias (float32).
  library.def(
      "head_rows(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, float temperature, bool entropy) "
      "-> (Tensor logprobs, Tensor entropies, Tensor lse, Tensor logits)");
  // A word a row from softmax((hidden·weightᵀ + bias)/temperature), by a uniform number in [0, 1), and its log-prob.
  library.def(
      "sample_rows(Tensor hidden, Tensor weight, Tensor? bias, float temperature, Tensor uniform) "
      "-> (Tensor words, Tensor logprobs)");
  library.def("pack_head(Tensor weight) -> Tensor");
  library.def(
      "head_rows_backward(Tensor grad_logprobs, Tensor? grad_entropies, Tensor hidden, Tensor weight, Tensor targets, "
      "Tensor lse, Tensor entropies, Tensor logits, Tensor packed, float temperature, Tensor(a!) grad_weight, "
      "Tensor(b!)? grad_bias) -> Tensor grad_hidden");
  library.def(
      "logprobs_from_logits(Tensor logits, Tensor targets, float temperature, bool entropy) "
      "-> (Tensor logprobs, Tensor entropies, Tensor lse)");
  library.def(
      "logprobs_from_logits_backward(Tensor grad_logprobs, Tensor? grad_entropies, Tensor logits, Tensor targets, "
      "Tensor lse, Tensor entropies, float temperature) -> Tensor grad_logits");
  library.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");  // for a few rows, without gradients
  library.def(
      "shaped_gae(Tensor scores, Tensor values, Tensor cu_seqlens, Tensor? mask, Tensor? rewards, "
      "Tensor? logprobs, Tensor? ref_logprobs, Tensor? bootstrap, float gamma, float lam, float kl_coef, "
      "str kl_estimator, float? score_clip) "
      "-> (Tensor advantages, Tensor returns, Tensor kl, Tensor count, Tensor mean, Tensor var)");
  library.def(
      "policy_loss(Tensor logprobs, Tensor old_logprobs, Tensor advantages, Tensor? mask, Tensor? values, "
      "Tensor? old_values, Tensor? returns, Tensor? entropy, Tensor? ref_logprobs, Tensor? importance, "
      "Tensor? cu_seqlens, Tensor? mean, Tensor? var, Tensor? denominator, str objective, str level, str aggregate, "
      "str kl_estimator, float clip_low, float clip_high, float? dual_clip, float? value_clip, float value_coef, "
      "float entropy_coef, float kl_coef, bool shift_mean) "
      "-> (Tensor loss, Tensor metrics, Tensor grad_logprobs, Tensor grad_values, Tensor grad_entropy)");
  library.def(
      "ranking_loss(Tensor scores, Tensor cu_seqlens, Tensor ranks, Tensor? rating, Tensor? denominator, "
      "float margin, float center_coef) -> (Tensor loss, Tensor accuracy, Tensor grad_scores)");
  library.def(
      "preference_loss(Tensor chosen, Tensor rejected, Tensor? ref_chosen, Tensor? ref_rejected, "
      "Tensor? chosen_lengths, Tensor? rejected_lengths, Tensor? denominator, float beta, str kind, "
      "float label_smoothing, float margin) "
      "-> (Tensor loss, Tensor metrics, Tensor grad_chosen, Tensor grad_rejected)");
  library.def(
      "decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, Tensor? prefix_k, Tensor? prefix_v, "
      "Tensor? prefix_of, Tensor? prefix_lengths, float scale) -> Tensor");
}
