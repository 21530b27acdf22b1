"""A small world to try a plugin in: a language of eight words, a model of it, people who prefer one of two answers.

The answer to every prompt is "left" or "right", the two arms of a bandit; people, the demonstrations and the reward
prefer "right". The model is a Llama with random weights, which hardly prefers anything.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from torch import Tensor
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .. import plugins
from ..contracts.data import Data, Demonstration, Message, Prompt, Ranking, Split
from ..contracts.reward import Samples
from ..language_model import LanguageModel
from ..run import Run, prepare
from ..scalar_model import ScalarModel
from ..settings import Trainer, TrainSettings
from ..text import encode_prompt

END, PAD, USER, ASSISTANT, ASK, LEFT, RIGHT, OTHER = range(8)
WORDS = ("<end>", "<pad>", "<user>", "<assistant>", "ask", "left", "right", "other")
TEMPLATE = (
    "{% for message in messages %}{{ '<assistant>' if message.role == 'assistant' else '<user>' }} "
    "{{ message.content }} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def word_tokenizer() -> Any:
    """One token a word; any other word is read as "other"."""
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="other"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _ended(words)


def text_tokenizer() -> Any:
    """One token a byte, so that any text can be written."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*WORDS[:4], *alphabet])}
    letters = Tokenizer(BPE(vocabulary, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    return _ended(letters)


def _ended(tokenizer: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=WORDS[END], pad_token=WORDS[PAD], chat_template=TEMPLATE,
        extra_special_tokens=list(WORDS[USER : ASSISTANT + 1]), clean_up_tokenization_spaces=False,
    )  # fmt: skip


def language_model(tokenizer: Any, seed: int = 1) -> LanguageModel:
    """A Llama of two layers; weights are large enough that attention and positions matter."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=1,
        max_position_embeddings=4096, initializer_range=0.15, bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModel(LlamaForCausalLM(config), tokenizer)


@dataclass
class SmallPolicy:
    """The small model."""

    rlhf_api: ClassVar[int] = 1

    def language_model(self, data: Data) -> LanguageModel:
        """A new one, always with the same weights."""
        return language_model(word_tokenizer())

    def scalar_model(self, path: str | None = None) -> ScalarModel:
        """From the checkpoint at ``path``, else from the model itself."""
        own = language_model(word_tokenizer())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            if path is None:
                config = deepcopy(own.model.config)
                config.num_labels = 1  # type: ignore[union-attr]
                model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
                model.model.load_state_dict(own.model.model.state_dict())  # type: ignore[union-attr]
            else:
                model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
        return ScalarModel(model, own.tokenizer)


@dataclass
class SmallData:
    """512 prompts of one to three words, to which people answer "right"; every split is the same."""

    rlhf_api: ClassVar[int] = 1
    size: int = 512

    def setup(self, seed: int) -> None:
        """Nothing to fetch."""

    def text(self, split: Split) -> Sequence[str]:
        """Questions with their answers."""
        return [f"{prompt.text} right" for prompt in self.prompts(split)]

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """The questions."""
        return [Prompt(text=" ".join(["ask"] * (1 + number % 3))) for number in range(self.size)]

    def demonstrations(self, split: Split) -> Sequence[Demonstration]:
        """The answers people give."""
        return [Demonstration(prompt, "right") for prompt in self.prompts(split)]

    def rankings(self, split: Split) -> Sequence[Ranking]:
        """Right before left, and every third time "other" between them; with two raters each."""
        pair, three = ("left", "right"), ("left", "other", "right")
        answers = [three if number % 3 == 0 else pair for number in range(self.size)]
        return [
            Ranking(
                prompt, words, tuple(range(len(words)))[::-1], tuple((float(i), float(i)) for i in range(len(words)))
            )
            for prompt, words in zip(self.prompts(split), answers, strict=True)
        ]


def ranked(prompt: Prompt, worst_to_best: tuple[str, ...]) -> Ranking:
    """Two raters agree on the order."""
    scores = [float(number) for number in range(len(worst_to_best))]
    return Ranking(prompt, worst_to_best, tuple(scores[::-1]), tuple((score, score) for score in scores))


@dataclass
class Arms:
    """What each answer is worth, by its first token."""

    rlhf_api: ClassVar[int] = 1
    worth: dict[int, float] = field(default_factory=lambda: {RIGHT: 1.0})
    """token → reward; 0 of any other"""

    def setup(self, run: Run) -> None:
        """Nothing to load."""

    def score(self, samples: Samples) -> Tensor:
        """``[B]`` float32."""
        first = [response[0] if response else END for response in samples.response_ids]
        return torch.tensor([self.worth.get(token, 0.0) for token in first], dtype=torch.float32)


class World:
    """What a check needs beside the plugin."""

    def __init__(self, folder: Path, device: str = "cpu", kind: str = "") -> None:
        """``folder`` is empty, for a check the working directory, too; ``kind`` is what a plugin is checked as."""
        self.folder, self.kind, self.device = folder, kind, torch.device(device)
        self._numbers = count()

    def run(self, *, seed: int = 0, max_new_tokens: int = 4, trainer: Trainer | None = None, **chosen: Any) -> Run:
        """A run in a folder of its own, set up as ``rlhf train`` does it but for the algorithm.

        Args:
            seed: the run's.
            max_new_tokens: the longest answer, of the rollout that is there unless another is chosen.
            trainer: how often to log and save; None: it saves nothing.
            chosen: plugins by their kind, in the place of the world's own.
        """
        rollout = plugins.load("rollout", "transformers")(max_new_tokens=max_new_tokens)
        own = {"policy": SmallPolicy(), "data": SmallData(), "reward": Arms(), "rollout": rollout, "algorithm": None}
        settings = TrainSettings(
            **(own | chosen), trainer=trainer or Trainer(checkpoint_every=0), seed=seed, device=str(self.device)
        )
        run = Run(settings, self.new_folder(), self.device)
        prepare(run)
        return run

    def new_folder(self) -> Path:
        """An empty one."""
        folder = self.folder / f"run_{next(self._numbers)}"
        folder.mkdir()
        return folder

    @cached_property
    def model(self) -> LanguageModel:
        """The small model, on the world's device."""
        model = language_model(word_tokenizer())
        model.model.to(self.device).eval()
        return model

    @cached_property
    def samples(self) -> Samples:
        """Answers people might get: good and bad, short and long, chat and plain."""
        return written(list(_conversations()), text_tokenizer())

    @cached_property
    def odd_samples(self) -> Samples:
        """Answers that are empty, blank, foreign, of one word said often, or very long."""
        odd = ("", " \n\t", "…", "你好 🙂 ñ", "no " * 40, "word and another " * 250, "a\x00b", "<|end|> [1] {x}")
        return written([(Prompt(text="Say something."), text) for text in odd], text_tokenizer())


def written(pairs: Sequence[tuple[Prompt, str]], tokenizer: Any) -> Samples:
    """Prompts and responses as a rollout gives them; every third response was cut, unless it is empty."""
    prompts, responses = [prompt for prompt, _ in pairs], [response.strip() for _, response in pairs]
    stops = ["length" if number % 3 == 2 else "eos" for number in range(len(pairs))]
    ids = [
        tokenizer.encode(response, add_special_tokens=False) + [END] * (stop == "eos" or not response)
        for response, stop in zip(responses, stops, strict=True)
    ]
    return Samples(prompts, responses, [encode_prompt(tokenizer, prompt) for prompt in prompts], ids, stops, tokenizer)


def _conversations() -> Iterator[tuple[Prompt, str]]:
    asked = Prompt(messages=(Message("system", "Be kind."), Message("user", "How was the film?")))
    yield asked, "It was a lovely film, warm and funny, and I would see it again."
    yield asked, "It was bad."
    yield asked, "It was, it was, it was dull, dull, dull and it was dull!"
    counted = Prompt(text="What is 2 + 2?")
    yield counted, "4"
    yield counted, "The answer is 5, because 2 + 2 = 5."
    yield Prompt(text="The story begins"), " ".join(["with a house by the sea, and nobody in it."] * 12)
    yield Prompt(text=""), "Nothing was asked, so nothing is answered."
    longer = Prompt(
        messages=(Message("user", "Hello"), Message("assistant", "Hello!"), Message("user", "Who are you?"))
    )
    yield longer, "A program.\nI write what people rate well."
