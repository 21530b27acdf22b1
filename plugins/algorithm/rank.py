"""No training: the policy's answers, ranked by a judge or by people, for the next reward model."""

from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import ClassVar

from torch import nn

from rlhf_core.contracts.data import Ranking
from rlhf_core.contracts.reward import Samples, score_with_parts
from rlhf_core.errors import UserError, at_least
from rlhf_core.experience import sample_and_score
from rlhf_core.optimizer import AdamW
from rlhf_core.packing import Order
from rlhf_core.run import Run

from .plackett_luce import ranks_of, utilities
from .rankings import FILE
from .raters import Candidates, read_candidates, read_ranks, write_rows
from .untrained import Untrained

Scores = tuple[float, ...]
Judged = list[tuple[Ranking, Scores]]
"""Rankings, and the judge's score of each response; no scores where the run has no reward."""


@dataclass
class Rank(Untrained):
    """Fresh rankings of the current policy's answers (Ouyang et al. 2022, arXiv:2203.02155, step 2, done again).

    The judge is the run's reward; ranks order the utilities u_i = score_i + temperature · G_i, G_i ~ Gumbel(0, 1),
    which is a draw of the Plackett–Luce model with weights exp(score_i / temperature) (Plackett 1975; Yellott 1977).
    With ``file`` people or another program rank: the stage writes candidates.jsonl, stops, and goes on by ``resume``.

    It writes result/rankings.jsonl, rows as ``data=jsonl`` has them, for ``algorithm.ranking_files`` of reward_model.
    """

    rlhf_api: ClassVar[int] = 1

    prompts: int = 256  # training prompts answered
    responses: int = 4  # answers a prompt, 2…9
    round: int = 0  # each round has other prompts, until all had their turn
    temperature: float = 0.0  # of judges who disagree, in units of the score; 0: ranks follow the scores
    tie: float = 0.0  # responses whose utilities are this close to the best of their rank are tied
    file: str | None = None  # candidates.jsonl with ranks added, by people or another program; null: the reward judges
    optimizer: AdamW = field(default_factory=AdamW)  # unused: nothing is trained

    def setup(self, run: Run) -> nn.Module:
        """The policy, and this round's prompts."""
        at_least(1, algorithm__prompts=self.prompts)
        at_least(0, algorithm__round=self.round, algorithm__temperature=self.temperature, algorithm__tie=self.tie)
        if not 2 <= self.responses <= 9:
            raise UserError(f"algorithm.responses: got {self.responses}, expected 2…9 (responses a ranking)")
        self.run = run
        self.judged: Judged = []
        if self.file is None:
            _ = run.reward  # says so where there is none
        self.policy = run.policy.language_model(run.data)
        self.policy.model.to(run.device).eval()
        prompts = list(run.data.prompts("train"))
        order = Order(len(prompts), self.prompts, run.seed, "prompts")
        self.chosen = [prompts[index] for index in order.batch(self.round)]
        return self.policy.model

    def arithmetic(self) -> str:
        """What is ranked, and by whom."""
        raters = f"the raters of {self.file}" if self.file else f"reward {type(self.run.reward).__name__.lower()}"
        return f"{len(self.chosen)} prompts × {self.responses} responses, ranked by {raters}; no training"

    def evaluate(self, step: int) -> dict[str, float]:
        """Sample and have it ranked; what the rankings are like."""
        self.judged = self.by_judge() if self.file is None else self.by_raters(Path(self.file).expanduser())
        return statistics(self.judged, agreement=self.file is not None or self.temperature > 0)

    def by_judge(self) -> Judged:
        """Ranks by the run's reward."""
        candidates, scores = self.sample()
        noise = self.run.generator("ranks", self.round)
        return [
            (Ranking(one.prompt, one.responses, ranks_of(utilities(own, self.temperature, noise), self.tie)), own)
            for one, own in zip(candidates, scores, strict=True)
        ]

    def by_raters(self, file: Path) -> Judged:
        """Ranks from a file; the candidates are written first, and stay the same from then on."""
        path = self.run.folder / "candidates.jsonl"
        if not path.exists():
            write_rows(path, [one.row for one in self.sample()[0]])
        candidates = read_candidates(path)
        rankings = read_ranks(file, candidates)
        missing = set(candidates) - {Candidates(ranking.prompt, ranking.responses) for ranking in rankings}
        if missing:
            folder = self.run.folder
            inside = (folder.parent / "pipeline.json").exists()
            again = f"rlhf pipeline resume={folder.parent}" if inside else f"rlhf train resume={folder}"
            raise UserError(
                f"algorithm.file: {file} lacks the ranks of {len(missing)} of {len(candidates)} rows; to each row of "
                f'{path} add "ranks", one number a response (0 is best, equal is a tie), save as {file}, then {again}'
            )
        return [(ranking, self.scored(ranking)) for ranking in rankings]

    def sample(self) -> tuple[list[Candidates], list[Scores]]:
        """K answers to each prompt, and the reward's scores of them, 0 where there is none."""
        repeated = [prompt for prompt in self.chosen for _ in range(self.responses)]
        scored = sample_and_score(self.run, self.policy, repeated, self.run.generator("rank", self.round))
        texts, totals = scored.samples.responses, scored.totals.tolist()
        groups = [slice(at, at + self.responses) for at in range(0, len(repeated), self.responses)]
        candidates = [Candidates(repeated[group.start], tuple(texts[group])) for group in groups]
        return candidates, [tuple(totals[group]) for group in groups]

    def scored(self, ranking: Ranking) -> Scores:
        """What the run's reward, if there is one, says of responses that others ranked."""
        if self.run.settings.reward is None:
            return ()
        samples = Samples([ranking.prompt] * len(ranking.responses), ranking.responses)
        return tuple(score_with_parts(self.run.reward, samples)[0].tolist())

    def save(self, folder: Path) -> None:
        """rankings.jsonl."""
        rows = []
        for ranking, scores in self.judged:
            row = Candidates(ranking.prompt, ranking.responses).row | {"ranks": list(ranking.ranks)}
            rows.append(row | ({"scores": [round(score, 6) for score in scores]} if scores else {}))
        write_rows(folder / FILE, rows)

    def headline(self, metrics: dict[str, float]) -> str:
        """How many rankings there are, how good the answers, how sure the order."""
        text = f"{metrics['rankings']:.0f} rankings of {self.responses} responses, {metrics['tied']:.0%} of pairs tied"
        if "score" in metrics:
            text += f", mean score {metrics['score']:+.3f} (best {metrics['score_best']:+.3f})"
        return text + (f", order as the scores' in {metrics['agreement']:.0%}" if "agreement" in metrics else "")


def statistics(judged: Judged, agreement: bool) -> dict[str, float]:
    """How many rankings, the share of tied pairs, mean scores, and how often ranks and scores order a pair alike."""
    pairs = [
        (ranking.ranks[j] - ranking.ranks[i], scores[i] - scores[j] if scores else 0.0)
        for ranking, scores in judged
        for i, j in combinations(range(len(ranking.ranks)), 2)
    ]
    found = {"rankings": float(len(judged)), "tied": fmean(ranks == 0 for ranks, _ in pairs)}
    if all(scores for _, scores in judged):
        found |= {"score": fmean(score for _, scores in judged for score in scores)}
        found |= {"score_best": fmean(max(scores) for _, scores in judged)}
    alike = [ranks * scores > 0 for ranks, scores in pairs if ranks * scores]
    return found | ({"agreement": fmean(alike)} if agreement and alike else {})
