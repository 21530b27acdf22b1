"""Checkpoints: whole or not there, checked before they are believed, and generators put back."""

import errno
import random
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from rlhf_core import checkpoint
from rlhf_core.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from rlhf_core.errors import UserError


@pytest.fixture
def module():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    made[2].requires_grad_(False)  # as the base under adapters
    return made


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_what_is_trained_comes_back_and_what_is_frozen_is_not_saved(module, tmp_path):
    state = {"optimizer": {"lists": [torch.ones(2), 3, "x", None]}, "kl": 0.5}
    folder = save_checkpoint(tmp_path, 7, module, state, keep=2)
    assert (folder.name, checkpoints(tmp_path)) == ("step_000007", [folder])
    saved = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)
    loaded = load_checkpoint(folder, module)
    assert (loaded["step"], loaded["kl"], loaded["optimizer"]["lists"][1:]) == (7, 0.5, [3, "x", None])
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, saved[name] + (1 if name.startswith("2.") else 0)), name


def test_generators_are_put_back(module, tmp_path):
    def draws():
        return random.random(), np.random.rand(), np.random.randn(), float(torch.rand(())), random.gauss(0, 1)

    draws()  # an odd number of normal draws leaves one in store
    folder = save_checkpoint(tmp_path, 1, module, {}, keep=1)
    expected = [draws() for _ in range(3)]
    load_checkpoint(folder, module)
    assert [draws() for _ in range(3)] == expected


def test_only_the_newest_stay(module, tmp_path):
    for step in (2, 4, 6, 1_000_000):
        save_checkpoint(tmp_path, step, module, {}, keep=2)
    assert names(tmp_path) == ["step_000006", "step_1000000"]
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000006", "step_1000000"]


@pytest.mark.parametrize("culprit", ["torch.save", "save_file", "flush"])
def test_a_full_disk_leaves_older_checkpoints_and_nothing_half_written(module, tmp_path, monkeypatch, culprit):
    older = save_checkpoint(tmp_path, 2, module, {"note": "older"}, keep=1)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "state.pt"))

    with monkeypatch.context() as patch:
        patch.setattr(torch if culprit == "torch.save" else checkpoint, culprit.split(".")[-1], full)
        with pytest.raises(OSError) as caught:
            save_checkpoint(tmp_path, 4, module, {}, keep=1)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["step_000002"]
    assert load_checkpoint(older, module)["note"] == "older"
    save_checkpoint(tmp_path, 4, module, {}, keep=1)
    assert names(tmp_path) == ["step_000004"]


def test_what_a_killed_process_left_is_passed_over_and_overwritten(module, tmp_path):
    whole = save_checkpoint(tmp_path, 2, module, {}, keep=2)
    shutil.copytree(whole, whole.with_name("step_000004.partial"))
    assert checkpoints(tmp_path) == [whole]
    save_checkpoint(tmp_path, 4, module, {}, keep=2)
    assert names(tmp_path) == ["step_000002", "step_000004"]


def spoil(file, how):
    content = file.read_bytes()
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "bit":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        file.unlink()


WAYS = [(name, how) for name in ("model.safetensors", "state.pt", "manifest.json") for how in ("cut", "bit", "gone")]
WAYS.remove(("manifest.json", "bit"))  # a digit of a hash: then the file it belongs to is named


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_a_corrupt_file_is_named_with_a_remedy(module, tmp_path, name, how):
    save_checkpoint(tmp_path, 2, module, {}, keep=2)
    newest = save_checkpoint(tmp_path, 4, module, {}, keep=2)
    spoil(newest / name, how)
    with pytest.raises(UserError) as caught:
        load_checkpoint(newest, module)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"resume: checkpoint {newest} is corrupt (")
    assert message.endswith("; delete that folder to go on from step_000002")
    assert name in message or name == "manifest.json"
    shutil.rmtree(tmp_path / "checkpoints" / "step_000002")
    with pytest.raises(UserError, match=r"; delete that folder to start over$"):
        load_checkpoint(newest, module)


@pytest.mark.parametrize(
    ("other", "difference"),
    [(nn.Linear(3, 4), "0.bias"), (nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Identity()), "0.bias")],
)
def test_a_checkpoint_of_another_model_is_refused(module, tmp_path, other, difference):
    folder = save_checkpoint(tmp_path, 2, module, {}, keep=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(UserError, match=rf"was written by another model \(first difference: {difference}\)"):
        load_checkpoint(folder, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_pickle_that_names_code_is_not_run(module, tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code was run')",))

    folder = save_checkpoint(tmp_path, 2, module, {"evil": Evil()}, keep=1)
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        load_checkpoint(folder, module)
