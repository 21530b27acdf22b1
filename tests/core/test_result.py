"""A stage's result is a plain transformers checkpoint: it opens and says the same without rlhf_core."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from rlhf_plugins.policy.hf import HF, LoRA

STRANGER = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rlhf_core", "rlhf_plugins"):
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Refuse())
import json, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

answers = []
for folder, loader in zip(sys.argv[1::2], sys.argv[2::2]):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = globals()[loader].from_pretrained(folder, dtype=torch.float32).eval()
    text = tokenizer.apply_chat_template([{"role": "user", "content": "what of the film"}],
                                         add_generation_prompt=True, return_dict=False, tokenize=True)
    with torch.no_grad():
        logits = model(torch.tensor([text])).logits
    answers.append([text, logits.flatten().tolist()])
    if loader == "AutoModelForCausalLM":
        model.generate(torch.tensor([text]), max_new_tokens=3, do_sample=False)
assert not any(name.split(".")[0] in ("rlhf_core", "rlhf_plugins") for name in sys.modules)
print(json.dumps(answers))
"""


@pytest.fixture
def saved(checkpoints, reward_checkpoint, tmp_path):
    """Results of a full policy, of one with adapters, of GPT-2, and of a reward model; and what they answer here."""
    found = []
    for name, policy in {
        "full": HF(path=str(checkpoints["llama"])),
        "adapted": HF(path=str(checkpoints["llama"]), lora=LoRA(rank=2)),
        "gpt2": HF(path=str(checkpoints["gpt2"])),
    }.items():
        model = policy.language_model(None)
        with torch.no_grad():
            for parameter in model.model.parameters():
                parameter.add_(0.03 * parameter.requires_grad)
        model.save(tmp_path / name)
        found.append((tmp_path / name, "AutoModelForCausalLM", model.model.eval()))
    reward = HF(path=str(reward_checkpoint)).scalar_model()
    return [*found, (reward_checkpoint, "AutoModelForSequenceClassification", reward.model.eval())]


def test_a_process_without_rlhf_core_gives_the_same_logits(saved):
    words = [str(word) for folder, loader, _ in saved for word in (folder, loader)]
    process = subprocess.run([sys.executable, "-c", STRANGER, *words], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    for (tokens, logits), (folder, _, model) in zip(json.loads(process.stdout), saved, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([tokens])).logits.flatten()
        torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-4, msg=str(folder))


def test_a_result_holds_weights_a_tokenizer_and_no_trace_of_us(saved):
    for folder, *_ in saved:
        names = {path.name for path in folder.iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
        assert not any(name.endswith((".bin", ".pt", ".pkl", ".py")) for name in names)
        for path in folder.glob("*.json"):
            assert '"rlhf"' not in path.read_text() and "rlhf_core" not in path.read_text(), path
        with safe_open(folder / "model.safetensors", "pt") as weights:
            assert not any("lora" in name for name in weights.keys())  # noqa: SIM118  (no dict)
