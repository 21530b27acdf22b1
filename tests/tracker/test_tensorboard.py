"""What is logged comes back from the event files, also after a resume."""

import pytest

from rlhf_core.contracts.tracker import Tracker
from rlhf_core.errors import UserError
from rlhf_plugins.tracker import tensorboard as module
from rlhf_plugins.tracker.tensorboard import TensorBoard


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """Every tag's steps and values, as TensorBoard shows them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def log(run, steps, **options) -> None:
    tracker = TensorBoard(**options)
    assert isinstance(tracker, Tracker)
    tracker.start(run)
    for step in steps:
        tracker.log(step, {"loss": 1 / step, "reward/sentiment": float(step)}, "train")
    if steps:
        tracker.log(steps[-1], {"loss": 7.0}, "eval")
    tracker.close()


def test_scalars_by_phase_and_name(tmp_path):
    log(tmp_path, [1, 2, 4])
    assert scalars(tmp_path / "tensorboard") == {
        "train/loss": [(1, 1.0), (2, 0.5), (4, 0.25)],
        "train/reward/sentiment": [(1, 1.0), (2, 2.0), (4, 4.0)],
        "eval/loss": [(4, 7.0)],
    }


def test_a_resumed_run_hides_the_steps_it_repeats(tmp_path):
    log(tmp_path, [1, 2, 3, 4])
    log(tmp_path, [3, 4, 5])
    assert [step for step, _ in scalars(tmp_path / "tensorboard")["train/loss"]] == [1, 2, 3, 4, 5]


def test_another_folder_and_nothing_logged(tmp_path):
    log(tmp_path, [1], folder=str(tmp_path / "elsewhere"))
    assert "train/loss" in scalars(tmp_path / "elsewhere")
    log(tmp_path / "run", [])
    TensorBoard().close()  # a run that fails early closes what was never started
    assert not (tmp_path / "run").exists()


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install rlhf-core\[tensorboard\]"):
        TensorBoard().start(tmp_path)
