"""What a reward model learns from (pairs, ties, margins, files) and starts from, against loops over pairs."""

import json
import math
from itertools import combinations

import pytest
import torch

from rlhf_core.contracts.data import Prompt, Ranking
from rlhf_core.errors import UserError
from rlhf_core.language_model import unadapted
from rlhf_plugins.algorithm.pairwise import RankingLoss
from rlhf_plugins.algorithm.rankings import Ranked, ranked
from rlhf_plugins.policy.hf import HF

RANKS = [(0.0, 1.0), (1.0, 1.0, 0.0), (2.0, 0.0, 1.0, 0.0), (5.0, 5.0)]
RATINGS = [(3.0, -1.0), (0.5, 0.75, 2.0), (-3.0, 1.0, 0.0, 1.5), (0.0, 1.0)]


def examples(ratings=True):
    return [
        Ranked([1], [[2]] * len(ranks), ranks, rated if ratings else ())
        for ranks, rated in zip(RANKS, RATINGS, strict=True)
    ]


def log_sigmoid(value):
    return -math.log1p(math.exp(-value))


def by_hand(scores, ties, margin, center):
    """Loss and accuracy: a loop over pairs of each ranking."""
    losses, accuracies, values = [], [], iter(scores)
    for ranks, ratings in zip(RANKS, RATINGS, strict=True):
        own, terms, right = [next(values) for _ in ranks], [], []
        for i, j in combinations(range(len(ranks)), 2):
            d, centre = own[i] - own[j], center * (own[i] + own[j]) ** 2
            if ranks[i] == ranks[j]:
                if ties == "half":
                    terms.append(-0.5 * log_sigmoid(d) - 0.5 * log_sigmoid(-d) + centre)
                    right.append(0.5)
                continue
            sign = 1 if ranks[i] < ranks[j] else -1
            gap = sign * (ratings[i] - ratings[j]) if margin == "ratings" else 0 if margin == "none" else float(margin)
            terms.append(-log_sigmoid(sign * d - gap) + centre)
            right.append(1.0 if sign * d > 0 else 0.0)
        if terms:
            losses.append(sum(terms) / len(terms))
            accuracies.append(sum(right) / len(right))
    return sum(losses) / len(losses), sum(accuracies) / len(accuracies)


@pytest.mark.parametrize("center", [0.0, 0.3])
@pytest.mark.parametrize("margin", ["none", "ratings", "0.7"])
@pytest.mark.parametrize("ties", ["skip", "half"])
def test_the_loss_is_that_of_a_loop(ties, margin, center):
    scores = torch.randn(sum(map(len, RANKS)), generator=torch.Generator().manual_seed(1))
    loss, accuracy = RankingLoss(margin, ties, center)(scores, examples())
    expected = by_hand(scores.tolist(), ties, margin, center)
    assert (float(loss), float(accuracy)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("margin", ["none", "ratings", "0.7"])
@pytest.mark.parametrize("ties", ["skip", "half"])
def test_the_order_of_responses_does_not_matter(ties, margin):
    scores = [torch.randn(len(ranks), generator=torch.Generator().manual_seed(len(ranks))) for ranks in RANKS]
    objective, rows = RankingLoss(margin, ties, 0.1), examples()
    turned = [Ranked(row.prompt, row.responses, row.ranks[::-1], row.ratings[::-1]) for row in rows]
    one = objective(torch.cat(scores), rows)
    other = objective(torch.cat([own.flip(0) for own in scores]), turned)
    assert [float(value) for value in one] == pytest.approx([float(value) for value in other], rel=1e-5)


def test_a_tie_pulls_two_scores_together_and_skipped_leaves_them():
    scores = torch.tensor([1.5, -0.5], requires_grad=True)
    loss, accuracy = RankingLoss(ties="half", margin="2")(scores, [examples()[-1]])  # a tie has no margin
    (gradient,) = torch.autograd.grad(loss, scores)
    d = 2.0
    assert float(loss.detach()) == pytest.approx(-0.5 * log_sigmoid(d) - 0.5 * log_sigmoid(-d)) and accuracy == 0.5
    assert gradient.tolist() == pytest.approx([0.5 * math.tanh(d / 2), -0.5 * math.tanh(d / 2)])
    assert RankingLoss(ties="half").count(examples()) == 4 and RankingLoss().count(examples()) == 3


@pytest.mark.parametrize("words", [{"ties": "both"}, {"margin": "rating"}, {"margin": "nan"}])
def test_other_words_are_refused(words):
    with pytest.raises(UserError, match=rf"^algorithm\.{next(iter(words))}: got '\w+', expected"):
        RankingLoss(**words)


def test_mean_ratings_come_with_rankings_in_tokens(tokenizer):
    row = Ranking(Prompt(text="a"), ("good", "bad"), (0.0, 1.0), ((1.0, 3.0), (-1.0, 0.0, 4.0)))
    (found,) = ranked([row], tokenizer, 32)
    assert found.ratings == (2.0, 1.0)
    RankingLoss("ratings").check([found])
    with pytest.raises(UserError, match=r"^algorithm\.margin: ratings, but 1 of 2 rankings have none"):
        RankingLoss("ratings").check([found, *examples(ratings=False)[:1]])


@pytest.fixture
def stage(checkpoints):
    return ["algorithm=reward_model", "policy=hf", f"policy.path={checkpoints['llama']}", "algorithm.batch_size=6"]


@pytest.fixture
def files(tmp_path):
    """Two files of rankings, one in the place where a rank stage writes."""
    inside = tmp_path / "rank" / "result"
    inside.mkdir(parents=True)
    turns = [{"role": "user", "content": "what of the film"}]
    rows = [{"prompt": turns, "responses": [f"good {n}", f"bad {n}"], "ranks": [0, 1]} for n in range(5)]
    (inside / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = [{"prompt": "and the cast", "responses": ["warm", "dull", "cold"], "ranks": [0, 1, 1]}]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    return inside, tmp_path / "more.jsonl"


@pytest.mark.parametrize("budget", [1, 100_000])
def test_microbatches_of_halved_ties_add_up(start, stage, budget):
    started = start(*stage, "algorithm.ties=half", f"trainer.microbatch_tokens={budget}")
    batch = started.algorithm.collect(0)
    assert any(len(set(ranking.ranks)) < len(ranking.ranks) for ranking in batch)
    scores = started.algorithm.model.last(packed_of(batch)).detach()
    whole, accuracy = RankingLoss(ties="half")(scores, batch)
    (microbatches,) = started.algorithm.minibatches(batch)
    losses = [started.algorithm.loss(microbatch) for microbatch in microbatches]
    assert sum(float(loss.value.detach()) for loss in losses) == pytest.approx(float(whole), rel=1e-4)
    assert started.gradients()[1]["accuracy"] == pytest.approx(float(accuracy))


def packed_of(batch):
    from rlhf_core.batch import Packed

    rows = [(ranking.prompt, response) for ranking in batch for response in ranking.responses]
    return Packed.answers(*zip(*rows, strict=True), device=torch.device("cpu"))


def whole_loss(started):
    """Of all examples as one batch."""
    (microbatches,) = started.algorithm.minibatches(started.algorithm.rankings)
    with torch.no_grad():
        return sum(float(started.algorithm.loss(microbatch).value) for microbatch in microbatches)


def test_shuffled_pairs_of_two_responses_are_the_rankings_themselves(start, stage, files):
    words = [*stage, "algorithm.use_data=false", f"algorithm.ranking_files=[{files[0]}]"]
    together, apart = start(*words), start(*words, "algorithm.pairs=shuffled")
    assert together.algorithm.rankings == apart.algorithm.rankings
    assert whole_loss(together) == pytest.approx(whole_loss(apart), rel=1e-6)
    assert together.algorithm.total_steps == apart.algorithm.total_steps
    assert "5 pairs (10 responses)" in apart.algorithm.arithmetic()


@pytest.mark.parametrize("ties", ["skip", "half"])
def test_shuffled_makes_every_pair_an_example(start, stage, ties):
    whole = start(*stage).algorithm.rankings
    started = start(*stage, "algorithm.pairs=shuffled", f"algorithm.ties={ties}")
    pairs = [
        (ranking.prompt, [ranking.responses[i], ranking.responses[j]], (ranking.ranks[i], ranking.ranks[j]))
        for ranking in whole
        for i, j in combinations(range(len(ranking.ranks)), 2)
        if ranking.ranks[i] != ranking.ranks[j] or ties == "half"
    ]
    found = started.algorithm.rankings
    assert [(pair.prompt, pair.responses, pair.ranks) for pair in found] == pairs and len(pairs) > len(whole)
    assert started.algorithm.total_steps == round(len(pairs) / 6)
    order = [found.index(pair) for step in range(4) for pair in started.algorithm.collect(step)]
    assert order != sorted(order)


def test_rankings_of_files_join_those_of_the_data(start, stage, files):
    own = start(*stage).algorithm.rankings
    names = ",".join(map(str, files))
    more = start(*stage, f"algorithm.ranking_files=[{names}]").algorithm
    assert more.rankings[: len(own)] == own
    extra = more.rankings[len(own) :]
    assert [len(ranking.responses) for ranking in extra] == [2] * 5 + [3] and extra[-1].ranks == (0.0, 1.0, 1.0)
    turn = more.model.tokenizer.decode(extra[-1].prompt)
    assert turn.count("<|user|>") == 1 and "and the cast" in turn  # a string is a user's turn, as with data=jsonl
    words = [*stage, "algorithm.use_data=false"]
    run_folder = start(*words, f"algorithm.ranking_files=[{files[0].parent}]").algorithm
    assert run_folder.rankings == extra[:5]


def test_files_that_do_not_help_are_named(start, stage, files, tmp_path):
    with pytest.raises(UserError, match=rf"^algorithm\.ranking_files: {tmp_path} holds no rankings\.jsonl"):
        start(*stage, f"algorithm.ranking_files=[{tmp_path}]")
    with pytest.raises(UserError, match=r"mores\.jsonl: there is no such file\. Did you mean .*/more\.jsonl\?"):
        start(*stage, f"algorithm.ranking_files=[{tmp_path / 'mores.jsonl'}]")
    with pytest.raises(UserError, match=r"^data: no rankings to train on"):
        start(*stage, "algorithm.use_data=false")
    with pytest.raises(UserError, match=r"^algorithm\.margin: ratings, but \d+ of \d+ rankings have none"):
        start(*stage, "algorithm.margin=ratings")
    with pytest.raises(UserError, match=r"^algorithm\.pairs: got 'all', expected ranking or shuffled"):
        start(*stage, "algorithm.pairs=all")


def test_from_scratch_keeps_the_architecture_and_no_weight(start, stage):
    given = dict(unadapted(start(*stage).algorithm.model.model).named_parameters())
    model = start(*stage, "algorithm.from_scratch=true").algorithm.model.model
    fresh = dict(model.named_parameters())
    assert {name: p.shape for name, p in fresh.items()} == {name: p.shape for name, p in given.items()}
    assert all(not torch.equal(p, given[name]) for name, p in fresh.items() if p.ndim > 1)
    spread = [float(p.detach().std()) for name, p in fresh.items() if p.ndim > 1 and "score" not in name]
    assert spread == pytest.approx([model.config.initializer_range] * len(spread), rel=0.15)
    with pytest.raises(UserError, match=r"^algorithm\.from_scratch: true, but adapters"):
        start(*stage, "algorithm.from_scratch=true", "policy.lora.rank=2")


def test_a_reward_model_of_another_size_scores_the_policy(start, stage, new_model, tokenizer, ppo, tmp_path):
    small = tmp_path / "small"
    new_model("llama", hidden_size=16, intermediate_size=32, num_hidden_layers=1).save_pretrained(small)
    tokenizer.save_pretrained(small)
    started = start(*stage, f"policy.path={small}")
    assert started.algorithm.model.head.in_features == 16
    started.algorithm.save(tmp_path / "reward")
    algorithm = start(*ppo("llama", f"reward.path={tmp_path / 'reward'}")).algorithm
    assert algorithm.policy.model.config.hidden_size == 32
    scored = algorithm.sample(0)
    expected = HF(path=str(tmp_path / "reward")).scalar_model()
    with torch.no_grad():
        ended = [list(row) if row[-1] == tokenizer.eos_token_id else [*row, tokenizer.eos_token_id]
                 for row in scored.samples.response_ids]  # fmt: skip
        rows = [Ranked(list(prompt), [answer], (0.0,)) for prompt, answer in
                zip(scored.samples.prompt_ids, ended, strict=True)]  # fmt: skip
        torch.testing.assert_close(scored.scores, expected.last(packed_of(rows)), rtol=0, atol=1e-5)
