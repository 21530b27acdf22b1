#!/usr/bin/env bash
# Every run behind docs/findings.md, one after the other: benchmarks/findings.sh [RUNS [SEED …]]
# What is finished is skipped, so it may be stopped and started again. Several hours on one core for five seeds.
set -euo pipefail
runs=${1:-runs/findings}
shift || true
seeds=${*:-0 1 2 3 4}
export OMP_NUM_THREADS=1

run() { # NAME COMMAND OVERRIDE…
  local name=$1 command=$2
  shift 2
  test -e "$runs/$name/summary.json" -o -e "$runs/$name/report.html" || rlhf "$command" "$@" "run_dir=$runs/$name"
}

mkdir -p "$runs"
runs=$(cd "$runs" && pwd)
for s in $seeds; do
  base=$runs/base$s
  sft="policy.path=$base/sft/result seed=$s"
  quality="reward.parts.quality.path=$base/reward_model/result"
  run "base$s" pipeline seed="$s"

  # Every algorithm on the default task.
  for a in reinforce rloo reinforce_pp grpo dr_grpo dapo gspo cispo online_dpo best_of_n; do
    more=$(test $a = best_of_n && echo algorithm.curve=false || true)
    run "cmp-$a-$s" train experiment=default_task algorithm=$a $sft "$quality" $more
  done
  run "cmp-ppo-$s" train experiment=alignment_tax trainer.eval_every=4 $sft "$quality"
  for a in dpo ipo kto orpo simpo feedme; do
    run "cmp-$a-$s" train experiment=$a $sft
  done
  run "cmp-feedme_reward-$s" train experiment=feedme_reward reward.path="$base/reward_model/result" $sft

  # (a) All pairs of a ranking together, or shuffled.
  run "pairs-ranking-$s" train experiment=ranking_pairs $sft
  run "pairs-shuffled-$s" train experiment=shuffled_pairs $sft

  # (b) The alignment tax: PPO above is without pretraining text.
  run "tax-$s" train experiment=alignment_tax algorithm.ptx_coef=0.5 trainer.eval_every=4 $sft "$quality"

  # (c) Over-optimisation of a weak reward model, and of the worst of three.
  for k in 0 10 20; do
    run "weak-$s-$k" train experiment=weak_reward "policy.path=$base/sft/result" seed=$((s + k))
  done
  gold="evaluator.win_rate.judge.parts.quality.path=$base/reward_model/result"
  run "over-$s" train experiment=overoptimise reward.path="$runs/weak-$s-0/result" "$gold" $sft
  run "overens-$s" train experiment=overoptimise_ensemble "$gold" $sft \
    "reward.paths=[$runs/weak-$s-0/result,$runs/weak-$s-10/result,$runs/weak-$s-20/result]"

  # (d) Best of n.
  run "bon-$s" train experiment=best_of_64 algorithm.eval_prompts=128 $sft "$quality"

  # (f) One round of fresh rankings, or three of a third each; pretraining and SFT are the base's.
  for rounds in 1 3; do
    mkdir -p "$runs/iter$rounds-$s" && cp -rn "$base/pretrain" "$base/sft" "$runs/iter$rounds-$s/"
    run "iter$rounds-$s" pipeline pipeline=iterate seed="$s" rounds=$rounds reward_model.algorithm.use_data=false \
      rank.algorithm.prompts=$((1536 / rounds)) ppo.algorithm.steps=$((24 / rounds)) ppo.trainer.eval_every=0 \
      ppo.trainer.checkpoint_every=0
    cp "$runs/iter$rounds-$s/ppo_$rounds/summary.json" "$runs/iter$rounds-$s/ppo_$rounds/metrics.jsonl" "$runs/iter$rounds-$s/"
  done

  # (e) A model of 4.5 times the size, pretrained only, the same one for all seeds.
  run big train algorithm=lm algorithm.epochs=1.25 policy.hidden=256 policy.layers=6 policy.heads=4 \
    algorithm.optimizer.lr=2e-3
  for stage in pretrain sft ppo; do
    run "bigger-$stage-$s" train experiment=bigger evaluator.win_rate.against="$runs/big/result" seed="$s" \
      policy.path="$base/$stage/result"
  done
done
python "$(dirname "$0")/findings.py" "$runs"
