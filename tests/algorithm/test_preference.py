"""CORRECTNESS 12, 24, 25, 29: losses on pairs against loops, in pieces; the reference; a run that was stopped."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_core.errors import UserError
from rlhf_core.trainer import Trainer
from rlhf_plugins.algorithm.pairs import pack, response_logprobs
from rlhf_plugins.algorithm.rankings import Ranked

VARIANTS = {
    "dpo": ["algorithm=dpo", "algorithm.pairs=all"],
    "dpo of the ends": ["algorithm=dpo", "algorithm.pairs=best", "algorithm.beta=0.3"],
    "cdpo": ["algorithm=dpo", "algorithm.pairs=all", "algorithm.label_smoothing=0.2"],
    "dpo without a reference": ["algorithm=dpo", "algorithm.pairs=all", "algorithm.reference_free=true"],
    "rpo": ["algorithm=dpo", "algorithm.pairs=all", "algorithm.imitation=0.6"],
    "ipo": ["algorithm=ipo", "algorithm.pairs=all", "algorithm.beta=0.4"],
    "orpo": ["algorithm=orpo", "algorithm.pairs=all", "algorithm.beta=0.7"],
    "cpo": ["algorithm=simpo", "algorithm.pairs=all", "algorithm.imitation=0.5", "algorithm.beta=1.5"],
    "simpo": ["algorithm=simpo", "algorithm.pairs=all", "algorithm.margin=0.4", "algorithm.label_smoothing=0.1"],
}


@pytest.fixture
def stage(checkpoints):
    def overrides(kind="llama", *more):
        return [
            "policy=hf", f"policy.path={checkpoints[kind]}", "algorithm.batch_size=6", "algorithm.eval_prompts=3",
            "algorithm.eval_examples=7", "rollout.max_new_tokens=4", "seed=3", *more,
        ]  # fmt: skip

    return overrides


def move(model, size=0.02):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


def by_hand(model, ranking):
    """Log-prob of each response in float64: one stock forward a response, one term a token."""
    found = []
    for response in ranking.responses:
        tokens = ranking.prompt + response
        with torch.no_grad():
            logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        found.append(sum(float(logprobs[t - 1, tokens[t]]) for t in range(len(ranking.prompt), len(tokens))))
    return found


def term(algorithm, name, c, r, ref_c, ref_r, n_c, n_r):
    """One pair's loss, as the papers have it, and the rewards of its responses."""
    beta = algorithm.beta

    def log_sigmoid(x):
        return -math.log1p(math.exp(-x))

    def smoothed(x):
        return -(1 - algorithm.label_smoothing) * log_sigmoid(x) - algorithm.label_smoothing * log_sigmoid(-x)

    if name == "ipo":
        c, r = (c - ref_c) / n_c, (r - ref_r) / n_r
        return (c - r - 1 / (2 * beta)) ** 2, beta * c, beta * r
    if name == "orpo":
        c, r = c / n_c, r / n_r
        odds = [math.log(math.exp(x) / (1 - math.exp(x))) for x in (c, r)]
        return -c - beta * log_sigmoid(odds[0] - odds[1]), beta * c, beta * r
    if name == "simpo":
        c, r = beta * c / n_c, beta * r / n_r
        return smoothed(c - r - algorithm.margin) - algorithm.imitation * c / beta, c, r
    imitation = -algorithm.imitation * c / n_c
    if not algorithm.reference_free:
        c, r = c - ref_c, r - ref_r
    return smoothed(beta * (c - r)) + imitation, beta * c, beta * r


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_the_papers(start, stage, checkpoints, variant):
    started = start(*VARIANTS[variant], *stage(), "trainer.microbatch_tokens=60")
    algorithm, name = started.algorithm, VARIANTS[variant][0].split("=")[1]
    move(algorithm.policy.model)
    reference = AutoModelForCausalLM.from_pretrained(checkpoints["llama"]).double()
    policy = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    policy.load_state_dict(algorithm.policy.model.state_dict())
    policy = policy.double()
    batch = algorithm.collect(0)
    rows = []
    for ranking in batch:
        now, before = by_hand(policy, ranking), by_hand(reference, ranking)
        sizes = [len(response) for response in ranking.responses]
        rows += [
            (*term(algorithm, name, now[b], now[w], before[b], before[w], sizes[b], sizes[w]), now[b], now[w])
            for b in range(len(sizes)) for w in range(len(sizes)) if ranking.ranks[b] < ranking.ranks[w]
        ]  # fmt: skip
    if algorithm.pairs == "best":
        assert len(rows) == len(batch) and all(len(ranking.responses) == 2 for ranking in batch)
    else:
        assert len(rows) > 2 * len(batch)
        assert any(len(set(ranking.ranks)) < len(ranking.ranks) for ranking in batch)
    losses, chosen, rejected, chosen_logprobs, rejected_logprobs = zip(*rows, strict=True)

    def mean(values):
        return sum(values) / len(rows)

    _, metrics = started.gradients()
    assert metrics["loss"] == pytest.approx(mean(losses), rel=1e-4)
    assert metrics["chosen_reward"] == pytest.approx(mean(chosen), rel=1e-4, abs=1e-5)
    assert metrics["rejected_reward"] == pytest.approx(mean(rejected), rel=1e-4, abs=1e-5)
    assert metrics["reward_margin"] == pytest.approx(mean(chosen) - mean(rejected), rel=1e-3, abs=1e-5)
    assert metrics["accuracy"] == pytest.approx(mean([c > r for c, r in zip(chosen, rejected, strict=True)]))
    assert metrics["chosen_logprob"] == pytest.approx(mean(chosen_logprobs), rel=1e-4)
    assert metrics["rejected_logprob"] == pytest.approx(mean(rejected_logprobs), rel=1e-4)
    (microbatches,) = algorithm.minibatches(batch)
    assert len(microbatches) > 2
    total = sum(float(algorithm.loss(microbatch).value.detach()) for microbatch in microbatches)
    assert total == pytest.approx(mean(losses), rel=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_piece_or_many(start, stage, variant):
    def started(budget):
        found = start(*VARIANTS[variant], *stage(), f"trainer.microbatch_tokens={budget}")
        move(found.algorithm.policy.model)
        return found

    whole = started(100_000)
    gradients, metrics = whole.gradients(step=1)
    held_out = whole.algorithm.evaluate(0)
    for budget in (1, 240):
        cut = started(budget)
        (pieces,) = cut.algorithm.minibatches(cut.algorithm.collect(1))
        assert len(pieces) == 6 if budget == 1 else 2 <= len(pieces) < 6
        cut.equals(gradients, metrics)
        assert cut.algorithm.evaluate(0) == pytest.approx(held_out, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_at_the_start_nothing_is_preferred(start, stage, kind):
    """And GPT-2 has dropout: policy and reference are one network all the same."""
    started = start("algorithm=dpo", *stage(kind))
    gradients, metrics = started.gradients()
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("chosen_reward", "rejected_reward", "reward_margin"):
        assert metrics[name] == pytest.approx(0, abs=1e-5)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_shared_prompt_is_as_good_as_its_own_for_each(start, stage, kind):
    algorithm = start("algorithm=dpo", *stage(kind)).algorithm
    batch = algorithm.collect(0)
    together = pack(batch, torch.device("cpu"))
    apart = [Ranked(r.prompt, [response], (0.0,)) for r in batch for response in r.responses]
    assert together.folded.responses_per_prompt.tolist() == [len(ranking.responses) for ranking in batch]
    with torch.no_grad():
        found = response_logprobs(algorithm.policy, together)
        alone = [response_logprobs(algorithm.policy, pack([one], torch.device("cpu"))) for one in apart]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-4)


def test_responses_end_with_the_end_token_and_rankings_of_ties_are_left_out(start, stage):
    started = start("algorithm=dpo", *stage())
    algorithm, rows = started.algorithm, started.run.data.rankings("train")
    kept = [row for row in rows if len(set(row.ranks)) > 1]
    assert 0 < len(kept) < len(rows)
    decode = algorithm.policy.tokenizer.decode
    for ranking, row in zip(algorithm.rankings, kept, strict=True):
        assert [decode(response[:-1]).strip() for response in ranking.responses] == list(row.responses)
        assert {response[-1] for response in ranking.responses} == {algorithm.policy.end}
    cut = start("algorithm=dpo", *stage(), "algorithm.max_length=40").algorithm.rankings
    lengths = [len(ranking.prompt) + len(response) for ranking in cut for response in ranking.responses]
    assert max(lengths) == 40 and min(lengths) < 40


def test_best_compares_the_first_of_the_best_with_the_first_of_the_worst(start, stage):
    both = [
        start("algorithm=dpo", *stage(), f"algorithm.pairs={pairs}").algorithm.rankings for pairs in ("all", "best")
    ]
    for ranking, ends in zip(*both, strict=True):
        best, worst = (ranking.ranks.index(end(ranking.ranks)) for end in (min, max))
        assert ends == Ranked(
            ranking.prompt, [ranking.responses[best], ranking.responses[worst]],
            (ranking.ranks[best], ranking.ranks[worst]),
        )  # fmt: skip


def test_the_reference_stays_as_it_was(start, stage):
    started = start("algorithm=dpo", *stage(), "algorithm.optimizer.lr=0.01", "trainer.max_steps=2")
    algorithm = started.algorithm
    packed = pack(algorithm.rankings[:4], torch.device("cpu"))
    with torch.no_grad():
        before = response_logprobs(algorithm.reference, packed)
    trainer = Trainer(started.run, algorithm)  # sets it up anew: the same start
    trainer.fit()
    assert not algorithm.reference.model.training
    assert not any(parameter.requires_grad for parameter in algorithm.reference.model.parameters())
    with torch.no_grad():
        assert torch.equal(response_logprobs(algorithm.reference, packed), before)
        assert (response_logprobs(algorithm.policy, packed) - before).abs().min() > 0.01


def test_with_lora_the_reference_has_the_adapters_off(start, stage):
    started = start("algorithm=dpo", *stage(), "policy.lora.rank=4")
    algorithm = started.algorithm
    packed = pack(algorithm.rankings[:4], torch.device("cpu"))
    with torch.no_grad():
        before = response_logprobs(algorithm.policy, packed)
        for name, parameter in algorithm.policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        assert (response_logprobs(algorithm.policy, packed) - before).abs().min() > 1e-3
        torch.testing.assert_close(response_logprobs(algorithm.reference, packed), before)
    gradients, _ = started.gradients()
    assert gradients and all("lora_" in name for name in gradients)


@pytest.mark.parametrize("name", ["orpo", "simpo"])
def test_what_needs_no_reference_has_none(start, stage, name):
    algorithm = start(f"algorithm={name}", *stage()).algorithm
    assert algorithm.reference is None
    assert algorithm.evaluate(0)["kl"] == pytest.approx(0, abs=1e-4)  # to the start


def test_evaluation_is_of_held_out_rankings_and_of_answers(start, stage):
    started = start("algorithm=dpo", *stage(), "evaluator=[win_rate]", "algorithm.eval_prompts=5")
    found = started.algorithm.evaluate(0)
    assert found["loss"] == pytest.approx(math.log(2), abs=1e-5) and found["accuracy"] == pytest.approx(0.5, abs=0.2)
    assert found["win_rate"] == 0.5 and found["length_ratio"] == 1 and found["kl"] == pytest.approx(0, abs=1e-4)
    assert not any(name.startswith("reward_") and name != "reward_margin" for name in found)  # there is no reward
    train, test = ({id(row) for row in started.run.data.rankings(split)} for split in ("train", "test"))
    assert not train & test and len(started.algorithm.held_out) == 7
    move(started.algorithm.policy.model, 0.1)
    moved = started.algorithm.evaluate(1)
    assert moved["loss"] != found["loss"] and abs(moved["kl"]) > 0.1
    rows = [json.loads(line) for line in (started.run.folder / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0] * 5 + [1] * 5
    assert "agrees with raters on" in started.algorithm.headline(moved)
    assert f"KL {moved['kl']:.1f} nats" in started.algorithm.headline(moved)


def test_a_reward_is_measured_where_there_is_one(start, stage):
    found = start("algorithm=dpo", *stage(), "reward=length").algorithm.evaluate(0)
    assert found["reward_gain_sd"] == 0


def test_without_rollout_or_prompts_there_are_no_answers(start, stage, checkpoints, caplog):
    words = ["algorithm=simpo", "policy=hf", f"policy.path={checkpoints['llama']}"]
    none = start(*words, "rollout=null").algorithm
    assert none.answers is None and "kl" not in none.evaluate(0)
    assert none.headline(none.evaluate(0)).startswith("agrees with raters on 0.")
    without = start(*words, "data.prompt_files=[]").algorithm
    assert without.answers is None and "kl" not in without.evaluate(0)
    assert "no held-out prompts are answered: data=jsonl has no prompt rows" in caplog.text


def test_without_held_out_rankings_that_is_said(start, stage):
    algorithm = start("algorithm=dpo", *stage()[:2], "algorithm.eval_split=validation", "data.validation_fraction=0",
                      "rollout=null").algorithm  # fmt: skip
    assert algorithm.evaluate(0) == {}
    assert algorithm.headline({}) == "nothing measured: the data hold nothing out"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm=dpo", "algorithm.beta=0"], "algorithm.beta: got 0, expected more than 0"),
        (["algorithm=dpo", "algorithm.pairs=some"], "algorithm.pairs: got 'some', expected all or best"),
        (["algorithm=dpo", "algorithm.label_smoothing=0.5"], "algorithm.label_smoothing: got 0.5, expected 0 to below"),
        (["algorithm=simpo", "algorithm.label_smoothing=-0.1"], "algorithm.label_smoothing: got -0.1, expected 0 to"),
        (["algorithm=simpo", "algorithm.margin=-1"], "algorithm.margin: got -1, expected at least 0"),
        (["algorithm=ipo", "algorithm.batch_size=0"], "algorithm.batch_size: got 0, expected at least 1"),
        (["algorithm=orpo", "algorithm.max_length=1"], "algorithm.max_length: got 1, expected at least 2"),
        (["algorithm=dpo", "algorithm.max_length=300"], "algorithm.max_length: sequences of 300 tokens, but the model"),
        (["algorithm=dpo", "algorithm.max_length=5"], "data: no rankings with a preference to train on"),
        (["algorithm=dpo", "algorithm.eval_split=tests"], "algorithm.eval_split: got 'tests', expected one of train"),
        (["algorithm=dpo", "algorithm.eval_examples=0"], "algorithm.eval_examples: got 0, expected at least 1"),
        (["algorithm=dpo", "data.ranking_files=[]"], "data=jsonl has no ranking rows; set data.ranking_files=[FILE]"),
    ],
)
def test_refusals(start, checkpoints, overrides, message):
    with pytest.raises(UserError) as caught:
        start("policy=hf", f"policy.path={checkpoints['llama']}", *overrides)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


KILL = 'kill_when(lambda row, _: (row["step"], row["phase"]) == (3, "train"))'


def test_a_killed_run_goes_on_as_if_never_stopped(rlhf, data, stage, tmp_path):
    words = [*data, *stage(), "algorithm=dpo", "algorithm.optimizer.lr=3e-3", "device=cpu", "threads=1"]
    words += ["trainer.checkpoint_every=2", "trainer.eval_every=2", "evaluator=[win_rate]"]
    whole = rlhf(tmp_path, "train", *words, "run_dir=whole")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert rlhf(tmp_path, "train", *words, "run_dir=killed", before=KILL).returncode == -9
    resumed = rlhf(tmp_path, "train", "resume=killed")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    for name in ("metrics.jsonl", "samples.jsonl", "result/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) > 4
    trained = [row["loss"] for row in rows if row["phase"] == "train"]
    assert trained[-1] < trained[0]
