"""The real judgments: counts, splits without a shared text, prompts, and ranks against the raters' own numbers."""

import io
import json
import os
import statistics
import tarfile
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from rlhf_core.contracts.data import Data
from rlhf_core.errors import UserError
from rlhf_core.fetch import cache_folder
from rlhf_plugins.data.human_ratings import ARCHIVE, HumanRatings, Rated, ranks_of, read_sentences

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data" / "vader_hutto_pypi"
SPLITS = ("train", "validation", "test")
DOMAINS = {"film review", "product review", "editorial", "tweet"}


def sdist_of(files: dict[str, bytes], path: Path) -> Path:
    """An archive in an archive, as the package has it."""

    def packed(members: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    inner = packed({f"hutto_ICWSM_2014/{name}": content for name, content in files.items()})
    path.write_bytes(packed({f"vaderSentiment-3.3.2/{ARCHIVE}": inner}))
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    cached = cache_folder() / "vaderSentiment-3.3.2.tar.gz"
    if cached.exists():
        return cached
    if not SHARED.exists():
        pytest.skip(
            "the sdist of vaderSentiment 3.3.2 is not in the cache; it is fetched by any run with data=human_ratings"
        )
    files = {file.name: file.read_bytes() for file in SHARED.glob("*.txt")}
    return sdist_of(files, tmp_path_factory.mktemp("sdist") / "vaderSentiment-3.3.2.tar.gz")


@pytest.fixture(scope="module")
def data(sdist) -> HumanRatings:
    data = HumanRatings(path=str(sdist))
    data.setup(seed=0)
    assert isinstance(data, Data)
    return data


@pytest.fixture(scope="module")
def sentences(sdist) -> list[Rated]:
    return list(read_sentences(sdist))


def test_counts(sentences):
    domains = Counter(sentence.domain for sentence in sentences)
    assert domains == {"film review": 10605, "product review": 3708, "editorial": 5190, "tweet": 4200}
    assert len(sentences) == 23703
    assert len({sentence.key for sentence in sentences}) == 23703
    assert all(-4 <= rating <= 4 for sentence in sentences for rating in sentence.ratings)
    assert statistics.median(len(sentence.ratings) for sentence in sentences) == 20


def test_no_text_stands_in_two_splits(data, sentences):
    texts = {split: {text.lower() for text in data.text(split)} for split in SPLITS}
    assert not any(texts[one] & texts[other] for one, other in combinations(SPLITS, 2))
    assert set.union(*texts.values()) == {sentence.text.lower() for sentence in sentences}
    sizes = [len(data.text(split)) for split in SPLITS]
    assert [size / sum(sizes) for size in sizes] == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_the_split_does_not_depend_on_the_seed(data, sdist):
    other = HumanRatings(path=str(sdist))
    other.setup(seed=123)
    assert all(other.text(split) == data.text(split) for split in SPLITS)
    assert other.rankings("test") == data.rankings("test") == data.rankings("test")


def test_text_is_clean(sentences):
    assert all(sentence.text == " ".join(sentence.text.split()) != "" for sentence in sentences)
    assert not any("\ufeff" in sentence.text or "&quot;" in sentence.text for sentence in sentences)


def test_prompts_name_the_domain_and_open_the_sentence(data, sentences):
    by_text = {}
    for sentence in sentences:
        by_text.setdefault(sentence.text.lower(), sentence)
    opening_words = Counter()
    for prompt, text in zip(data.prompts("test"), data.text("test"), strict=True):
        (message,) = prompt.messages
        domain, opening = message.content.split(": ", 1) if ": " in message.content else (message.content[:-1], "")
        assert message.role == "user"
        assert domain == by_text[text.lower()].domain
        assert text.startswith(opening)
        opening_words[len(opening.split())] += 1
    assert set(opening_words) <= {0, 1, 2, 3}
    assert all(opening_words[count] > 400 for count in (1, 2, 3))


def test_demonstrations_are_well_rated_and_continue_their_prompt(data, sentences):
    means = {}
    for sentence in sentences:  # of the same words twice the first counts
        means.setdefault(sentence.text.lower(), sentence.mean)
    demonstrations = data.demonstrations("test")
    assert len(demonstrations) > 500
    for row in demonstrations:
        opening = row.prompt.messages[0].content.partition(": ")[2]
        whole = f"{opening} {row.response}".strip()
        assert means[whole.lower()] >= 0.5
        assert row.response


@pytest.mark.parametrize("split", SPLITS)
def test_rankings_hold_four_to_nine_of_one_domain(data, sentences, split):
    known = {(sentence.domain, sentence.text) for sentence in sentences}
    rankings = data.rankings(split)
    assert {len(row.responses) for row in rankings} <= set(range(4, 10))
    assert Counter(len(row.responses) for row in rankings).most_common(1)[0][0] == 9
    for row in rankings[:400]:
        domain, _, opening = row.prompt.messages[0].content.partition(":")
        assert domain in DOMAINS
        assert all((domain, f"{opening.strip()} {response}".strip()) in known for response in row.responses)
        assert len(row.responses) == len(row.ranks) == len(row.ratings) == len(set(row.responses)) or not opening


def test_a_training_sentence_takes_part_in_each_round(data):
    rankings = data.rankings("train")
    assert sum(len(row.responses) for row in rankings) == pytest.approx(4 * len(data.text("train")), rel=0.001)
    assert sum(len(row.responses) for row in data.rankings("test")) == pytest.approx(len(data.text("test")), rel=0.01)


def test_ranks_are_those_of_the_means_and_ties_are_within_a_standard_error(data):
    """Of every pair in every test ranking, from the single ratings alone."""
    tied = untied = 0
    for row in data.rankings("test"):
        means = [statistics.fmean(ratings) for ratings in row.ratings]
        squares = [statistics.variance(ratings) / len(ratings) for ratings in row.ratings]
        for i, j in combinations(range(len(means)), 2):
            better, worse = (i, j) if means[i] >= means[j] else (j, i)
            assert row.ranks[better] <= row.ranks[worse]
            tied += row.ranks[i] == row.ranks[j]
            untied += row.ranks[i] != row.ranks[j]
        groups = [[k for k, rank in enumerate(row.ranks) if rank == level] for level in sorted(set(row.ranks))]
        leaders = [max(group, key=means.__getitem__) for group in groups]
        for leader, group in zip(leaders, groups, strict=True):
            bounds = [(squares[leader] + squares[k]) ** 0.5 for k in group]
            assert all(means[leader] - means[k] <= bound for k, bound in zip(group, bounds, strict=True))
            assert row.ranks[leader] == sum(rank < row.ranks[leader] for rank in row.ranks)  # how many are better
        for one, two in pairwise(leaders):
            assert means[one] - means[two] > (squares[one] + squares[two]) ** 0.5
    assert tied > 100 and untied > 1000


def test_ranks_by_hand():
    def rated(*ratings):
        return Rated("k", "tweet", "t", tuple(map(float, ratings)))

    sure = [rated(3, 3, 3, 3), rated(-1, -1, -1, -1), rated(3, 3, 3, 3), rated(1, 1, 1, 1)]
    assert ranks_of(sure) == [0, 3, 0, 2]
    chain = [rated(1, 3), rated(0, 2), rated(-1, 1), rated(-2, 0)]  # errors of 1: a tie at up to √2 from the leader
    assert ranks_of(chain) == [0, 0, 2, 2]


FILES = {
    f"{stem}_{kind}.txt": b"\xef\xbb\xbf" + lines.encode()
    for stem in ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")
    for kind, lines in (
        ("GroundTruth", "1_1\t1.5\tIt&#39;s   good \u00e9\n1_2\t-1.5\tbad\n"),
        ("anonDataRatings", f"1_1\t1.5\t0.5\t{json.dumps([1, 2])}\n1_2\t-1.5\t0.5\t{json.dumps([-1, -2])}\n"),
    )
}


def test_byte_order_marks_and_entities(tmp_path):
    sentences = list(read_sentences(sdist_of(FILES, tmp_path / "small.tar.gz")))
    assert len(sentences) == 8
    assert sentences[0] == Rated("film review/1_1", "film review", "It's good \u00e9", (1.0, 2.0))


def test_the_same_words_twice_are_taken_once(tmp_path):
    data = HumanRatings(path=str(sdist_of(FILES, tmp_path / "small.tar.gz")))
    data.setup(seed=0)
    assert sorted(text for split in SPLITS for text in data.text(split)) == ["It's good \u00e9", "bad"]


@pytest.mark.parametrize("size", [3, 10])
def test_group_sizes_are_four_to_nine(size):
    with pytest.raises(UserError, match=rf"^data.group_size: got {size}, expected 4…9"):
        HumanRatings(group_size=size).setup(0)


def test_group_size_bounds_a_ranking(sdist):
    data = HumanRatings(path=str(sdist), group_size=5)
    data.setup(0)
    assert {len(row.responses) for row in data.rankings("test")} == {4, 5}


@pytest.mark.parametrize("content", [None, b"no archive", b""])
def test_a_file_that_is_not_the_sdist_is_named(tmp_path, content):
    path = tmp_path / "other.tar.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        HumanRatings(path=str(path)).setup(0)
    assert str(caught.value).startswith(f"data.path: {path} is not the sdist of vaderSentiment==3.3.2")
    assert "\n" not in str(caught.value)


def test_an_archive_without_the_ratings_is_named(tmp_path):
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz"):
        pass
    with pytest.raises(UserError, match=f"no {ARCHIVE}"):
        HumanRatings(path=str(tmp_path / "empty.tar.gz")).setup(0)
    assert os.listdir(tmp_path) == ["empty.tar.gz"]


def test_fewer_rankings_are_spread_over_all_and_only_for_training(sdist, data):
    some = HumanRatings(path=str(sdist), limit=50)
    some.setup(seed=0)
    everything = data.rankings("train")
    assert some.rankings("train") == [everything[place * len(everything) // 50] for place in range(50)]
    assert some.rankings("test") == data.rankings("test")
    none = HumanRatings(path=str(sdist), limit=0)
    with pytest.raises(UserError, match=r"^data.limit: got 0, expected at least 1$"):
        none.setup(seed=0)
