"""``rlhf chat`` with a tiny random Llama: over a pipe as people would drive it, and piece by piece."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers import PreTrainedTokenizerFast as Fast

from rlhf_core import chat_session
from rlhf_core.chat import Sampling, language_model_folder, main
from rlhf_core.chat_session import Session
from rlhf_core.errors import UserError

TEMPLATE = (
    "{% for turn in messages %}{% if turn['role'] == 'system' and turn['content'] == 'refuse' %}"
    "{{ raise_exception('no system message here') }}{% endif %}"
    "{{ '<' + turn['role'][0] + '>' + turn['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
SPECIAL = ["<end>", "<u>", "<a>", "<s>"]
CONTEXT = 64


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """``chat`` and ``plain``, of one token a byte and a context of 64, and ``reward``, a classifier."""
    root = tmp_path_factory.mktemp("checkpoints")
    vocabulary = {token: index for index, token in enumerate(SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(vocabulary), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=0,
                         pad_token_id=0, initializer_range=0.5, num_labels=1)  # fmt: skip
    for name, model in {"chat": LlamaForCausalLM, "plain": LlamaForCausalLM,
                        "reward": LlamaForSequenceClassification}.items():  # fmt: skip
        template = TEMPLATE if name == "chat" else None
        model(config).save_pretrained(root / name)
        special = {"eos_token": "<end>", "pad_token": "<end>", "extra_special_tokens": SPECIAL[1:]}
        Fast(tokenizer_object=tokenizer, chat_template=template, **special).save_pretrained(root / name)
    return root


@pytest.fixture
def talk(checkpoints, monkeypatch, capsys):
    """Run a session over the given lines; gives what was said, the notes, and the prompts the model saw."""
    plain_generate = Session.generate

    def talk(*lines, checkpoint="chat", **options):
        prompts = []

        def generate(self, tokens, streamer):
            prompts.append(self.tokenizer.decode(tokens))
            plain_generate(self, tokens, streamer)

        monkeypatch.setattr(Session, "generate", generate)
        monkeypatch.setattr(chat_session, "lines", lambda: iter(lines))
        session = Session(checkpoints / checkpoint, Sampling(**({"max_new_tokens": 4, "seed": 1} | options)), "cpu")
        session.run()
        captured = capsys.readouterr()
        return captured.out, captured.err, prompts, session

    return talk


def rlhf_chat(*words, typed=""):
    command = [sys.executable, "-m", "rlhf_core.cli", "chat", *map(str, words)]
    return subprocess.run(command, input=typed, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})


def test_over_a_pipe_the_answers_alone_are_on_stdout(checkpoints):
    options = ("--temperature", "0", "--max-new-tokens", "5")
    first = rlhf_chat(checkpoints / "chat", *options, typed="hello\n\n/help\n/nonsense\nand then?\n")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("\n") >= 2
    assert "/reset" in first.stderr
    assert "/nonsense: no such command" in first.stderr
    assert "Traceback" not in first.stderr
    assert "Loading" not in first.stderr


def test_a_wrong_option_is_one_line_before_torch_is_loaded(checkpoints):
    wrong = rlhf_chat(checkpoints / "chat", "--temperature", "-1")
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines() == ["error: temperature: got '-1', expected a number from 0 (greedy) to 100"]
    code = "import sys; import rlhf_core.chat; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_turns_go_through_the_template_and_are_forgotten_on_reset(talk):
    out, _, prompts, session = talk("one", "two", "/reset", "/system S", "three")
    answers = [turn.content for turn in session.turns if turn.role == "assistant"]
    assert prompts[0] == "<u>one<end><a>"
    assert prompts[1].startswith("<u>one<end><a>")
    assert prompts[1].endswith("<end><u>two<end><a>")
    assert prompts[2] == "<s>S<end><u>three<end><a>"
    assert out.rstrip("\n").endswith(answers[-1])


def test_without_a_template_each_line_is_continued_by_itself(talk):
    _, notes, prompts, _ = talk("one", "two", checkpoint="plain")
    assert prompts == ["one", "two"]
    assert "no chat template" in notes


def test_the_oldest_turns_leave_a_full_context(talk):
    _, notes, prompts, _ = talk("a" * 20, "b" * 20, "c" * 20)
    assert "aaa" in prompts[1]
    assert "aaa" not in prompts[2]
    assert prompts[2].endswith("<u>" + "c" * 20 + "<end><a>")
    assert f"context of {CONTEXT} tokens is full: the oldest 2 turns are forgotten" in notes


def test_a_message_longer_than_the_context_is_refused_and_forgotten(talk):
    _, notes, prompts, _ = talk("x" * 100, "y", max_new_tokens=1000)
    assert "too long: 103 tokens, where the context of 64 leaves 32" in notes
    assert prompts == ["<u>y<end><a>"]


def test_a_seed_repeats_a_conversation_and_greedy_needs_none(talk):
    first, again, other = (talk("a", "b", seed=seed, temperature=2.0)[0] for seed in (1, 1, 2))
    assert first == again != other
    assert talk("a", seed=1, temperature=0)[0] == talk("a", seed=2, temperature=0)[0]
    out, *_ = talk("a", "/reset", "/set seed 1", "a", temperature=2.0)
    assert out[: len(out) // 2] == out[len(out) // 2 :]


def test_options_change_while_talking_and_slips_are_told(talk):
    _, notes, _, session = talk(
        "/set temperature 0", "/set top-k 3", "/set tempreature 1", "/set top_p 2", "/set", "/quit", "x"
    )
    assert (session.sampling.temperature, session.sampling.top_k, session.sampling.top_p) == (0, 3, 1)
    assert "Did you mean temperature?" in notes
    assert "top_p: got '2', expected a share above 0" in notes
    assert session.turns == []  # what follows /quit is not read


def test_a_template_that_refuses_leaves_the_conversation_as_it_was(talk):
    _, notes, prompts, _ = talk("/system refuse", "hello", "/system", "hello")
    assert "refuses this conversation: no system message here" in notes
    assert prompts == ["<u>hello<end><a>"]


def test_ctrl_c_cuts_an_answer_short_and_keeps_it(talk, checkpoints, monkeypatch):
    def interrupted(self, *args, streamer, **options):
        streamer.put(torch.tensor([[1, 2]]))  # the prompt
        for token in self.tokens:
            streamer.put(torch.tensor([token]))
        raise KeyboardInterrupt

    tokens = AutoTokenizer.from_pretrained(checkpoints / "chat").encode("partly \x1b[31mred said")
    monkeypatch.setattr(LlamaForCausalLM, "tokens", tokens, raising=False)
    monkeypatch.setattr(LlamaForCausalLM, "generate", interrupted)
    out, notes, _, session = talk("a")
    assert out == "partly [31mred said\n"  # and nothing that drives the terminal
    assert "(cut short)" in notes
    assert session.turns[-1].content == "partly [31mred said"


def test_a_model_that_fails_to_answer_says_so_and_goes_on(talk, monkeypatch):
    def broken(self, *args, **options):
        raise RuntimeError("probability tensor contains either inf or nan\nmore")

    monkeypatch.setattr(LlamaForCausalLM, "generate", broken)
    _, notes, _, session = talk("a", "b")
    assert notes.count("no answer: probability tensor contains either inf or nan\n") == 2
    assert session.turns == []


def test_which_checkpoint_a_folder_means(checkpoints, tmp_path):
    pipeline = tmp_path / "pipeline"
    stages = []
    for name, model, status in [("sft", "chat", "done"), ("rm", "reward", "done"), ("ppo", "chat", "failed")]:
        (pipeline / name).mkdir(parents=True)
        (pipeline / name / "result").symlink_to(checkpoints / model)
        stages.append({"name": name, "folder": name, "status": status})
    (pipeline / "pipeline.json").write_text(json.dumps({"name": "p", "stages": stages}))
    assert language_model_folder(checkpoints / "chat") == checkpoints / "chat"
    assert language_model_folder(pipeline / "ppo") == pipeline / "ppo" / "result"
    assert language_model_folder(pipeline) == pipeline / "sft" / "result"


def test_folders_without_a_language_model_are_refused_in_one_line(checkpoints, tmp_path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "pipeline.json").write_text(
        '{"stages": [{"name": "sft", "folder": "sft", "status": "running"}]}'
    )
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "config.json").write_text("{")
    cases = {
        checkpoints / "reward": "holds LlamaForSequenceClassification, which scores text",
        tmp_path / "unfinishd": f"Did you mean {tmp_path / 'unfinished'}?",
        tmp_path / "unfinished": "no result yet; go on with it by rlhf train resume=",
        tmp_path / "empty": "neither a run, nor a pipeline, nor a checkpoint",
        tmp_path / "fresh": "no finished stage yields a language model (sft running)",
        tmp_path / "corrupt": "config.json: cannot be read",
    }
    for folder, message in cases.items():
        with pytest.raises(UserError) as caught:
            main([str(folder)])
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_and_a_missing_word(checkpoints, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((checkpoints / "chat" / name).read_text())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be loaded"):
        main([str(tmp_path), "--device", "cpu"])
    with pytest.raises(UserError, match="arguments are required: RUN"):
        main([])


def test_help_ends_with_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--max-new-tokens" in text
    assert "examples" in text.strip().splitlines()[-4]
