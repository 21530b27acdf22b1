"""Real human judgments: 23,703 sentences, each rated from −4 to +4 by about 20 people."""

import hashlib
import html
import json
import math
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from statistics import fmean, variance
from typing import ClassVar

from rlhf_core.contracts.data import Demonstration, Message, Prompt, Ranking, Split
from rlhf_core.errors import UserError, at_least
from rlhf_core.fetch import fetch
from rlhf_core.packing import spaced

from .ranks import ranks_by

SDIST = "vaderSentiment==3.3.2"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
DOMAINS = {
    "movieReviewSnippets": "film review",
    "amazonReviewSnippets": "product review",
    "nytEditorialSnippets": "editorial",
    "tweets": "tweet",
}


@dataclass(frozen=True)
class Rated:
    """One sentence and what each rater gave it, from −4 (most negative) to +4."""

    key: str
    domain: str
    text: str
    ratings: tuple[float, ...]

    @cached_property
    def mean(self) -> float:
        """The mean rating."""
        return fmean(self.ratings)

    @cached_property
    def squared_error(self) -> float:
        """The squared standard error of the mean rating."""
        return variance(self.ratings) / len(self.ratings)


@dataclass
class HumanRatings:
    """Film and product reviews, editorials and tweets with every rater's score (Hutto & Gilbert, ICWSM 2014).

    The sentences come from the sdist of the PyPI package ``vaderSentiment`` 3.3.2 (MIT), fetched once into the cache.
    They are split by a hash of their id (80 / 10 / 10 %). A prompt names the domain and gives a sentence's opening
    words; the response goes on from there.
    """

    rlhf_api: ClassVar[int] = 1

    template: str = "{domain}: {opening}"  # the user's turn; {domain} and {opening} are filled in
    min_rating: float = 0.5  # mean rating from which a sentence counts as a demonstration
    opening_words: int = 3  # a prompt gives 1…this many opening words
    group_size: int = 9  # most responses a ranking holds (4…9)
    rounds: int = 4  # rankings a training sentence takes part in, each with other neighbours
    limit: int | None = None  # most rankings for training, evenly spaced; null: all
    path: str | None = None  # the sdist, where it lies already; null fetches it into the cache

    def setup(self, seed: int) -> None:
        """Fetch, parse and split the sentences. The split is a property of the data: ``seed`` does not move it."""
        at_least(1, data__opening_words=self.opening_words, data__rounds=self.rounds)
        at_least(1, data__limit=1 if self.limit is None else self.limit)
        if not 4 <= self.group_size <= 9:
            raise UserError(f"data.group_size: got {self.group_size}, expected 4…9 (responses a ranking)")
        sdist = (
            Path(self.path) if self.path else fetch(SDIST, "vaderSentiment-3.3.2.tar.gz", SDIST_SHA256, kind="sdist")
        )
        self._splits: dict[str, list[Rated]] = {"train": [], "validation": [], "test": []}
        seen: set[str] = set()
        for sentence in read_sentences(sdist):
            if sentence.text.lower() not in seen:  # the same words twice would cross the split
                seen.add(sentence.text.lower())
                self._splits[split_of(sentence.key)].append(sentence)

    def text(self, split: Split) -> list[str]:
        """All sentences of a split."""
        return [sentence.text for sentence in self._splits[split]]

    def prompts(self, split: Split) -> list[Prompt]:
        """The opening of every sentence of a split, well rated or not."""
        return [self._opened(sentence)[0] for sentence in self._splits[split]]

    def demonstrations(self, split: Split) -> list[Demonstration]:
        """Well-rated sentences, as the human-written answer to their opening words."""
        chosen = (sentence for sentence in self._splits[split] if sentence.mean >= self.min_rating)
        return [Demonstration(*self._opened(sentence)) for sentence in chosen]

    def rankings(self, split: Split) -> list[Ranking]:
        """Sentences of one domain with the same first word, else of one domain alone, ordered by their raters."""
        random = Random(f"{split}/{self.group_size}")
        rounds = self.rounds if split == "train" else 1
        found = [self._ranking(*group) for _ in range(rounds) for group in self._groups(split, random)]
        return found if split != "train" or self.limit is None else spaced(found, self.limit)

    def _opened(self, sentence: Rated) -> tuple[Prompt, str]:
        """A sentence as prompt and response; how many words open it follows from its key."""
        words = sentence.text.split(" ")
        count = min(1 + digest(sentence.key + "/opening") % self.opening_words, max(len(words) - 1, 0))
        return self._prompt(sentence.domain, " ".join(words[:count])), " ".join(words[count:])

    def _prompt(self, domain: str, opening: str) -> Prompt:
        filled = self.template.replace("{domain}", domain).replace("{opening}", opening).strip()
        return Prompt(messages=(Message("user", filled),))

    def _groups(self, split: Split, random: Random) -> Iterator[tuple[str, str, list[Rated]]]:
        by_opening: dict[tuple[str, str], list[Rated]] = defaultdict(list)
        for sentence in self._splits[split]:
            by_opening[sentence.domain, sentence.text.split(" ")[0]].append(sentence)
        rest: dict[str, list[Rated]] = defaultdict(list)
        for (domain, opening), members in by_opening.items():
            random.shuffle(members)
            cut = len(members) - len(members) % self.group_size if len(members) >= self.group_size else 0
            for start in range(0, cut, self.group_size):
                yield domain, opening, members[start : start + self.group_size]
            rest[domain] += members[cut:]
        for domain, members in rest.items():
            random.shuffle(members)
            for start in range(0, len(members), self.group_size):
                if len(group := members[start : start + self.group_size]) >= 4:
                    yield domain, "", group

    def _ranking(self, domain: str, opening: str, group: list[Rated]) -> Ranking:
        skip = len(opening) + 1 if opening else 0
        return Ranking(
            prompt=self._prompt(domain, opening),
            responses=tuple(sentence.text[skip:] for sentence in group),
            ranks=tuple(float(rank) for rank in ranks_of(group)),
            ratings=tuple(sentence.ratings for sentence in group),
        )


def ranks_of(group: list[Rated]) -> list[int]:
    """Ranks by mean rating, 0 the best; a tie where means differ by no more than the difference's standard error."""
    return ranks_by(
        [one.mean for one in group], lambda i, j: math.sqrt(group[i].squared_error + group[j].squared_error)
    )


def read_sentences(sdist: Path) -> Iterator[Rated]:
    """Every sentence of the archive inside the sdist, its text joined by id to its raters' scores."""
    try:
        with tarfile.open(sdist) as outer:
            name = next(name for name in outer.getnames() if name.endswith(ARCHIVE))
            with tarfile.open(fileobj=outer.extractfile(name)) as archive:
                files = {
                    Path(name).name: archive.extractfile(name)
                    for name in archive.getnames()
                    if name.endswith("s.txt") or name.endswith("Truth.txt")
                }
                contents = {name: file.read().decode("utf-8-sig") for name, file in files.items() if file}
    except (OSError, tarfile.TarError, StopIteration) as error:
        reason = next(iter(str(error).splitlines()), f"no {ARCHIVE}")
        raise UserError(f"data.path: {sdist} is not the sdist of {SDIST} ({reason})") from error
    for stem, domain in DOMAINS.items():
        rows = dict(line.split("\t", 1) for line in contents[f"{stem}_anonDataRatings.txt"].splitlines() if line)
        for line in contents[f"{stem}_GroundTruth.txt"].splitlines():
            key, _, text = line.split("\t", 2)
            ratings = json.loads(rows[key].split("\t")[-1])
            yield Rated(f"{domain}/{key}", domain, tidy(text), tuple(map(float, ratings)))


def tidy(text: str) -> str:
    """One line, single spaces, HTML entities as characters."""
    return " ".join(html.unescape(text).split())


def digest(text: str) -> int:
    """A number that follows from ``text`` alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(key: str) -> Split:
    """The split a sentence belongs to, by a hash of its id."""
    place = digest(key) % 10
    return "train" if place < 8 else "validation" if place == 8 else "test"
