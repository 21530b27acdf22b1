"""A pipeline is one process: several would race for its folder."""


def test_a_pipeline_under_torchrun_is_refused(rlhf, tmp_path):
    done = rlhf(tmp_path, "pipeline", "run_dir=here", before="import os; os.environ['WORLD_SIZE'] = '2'")
    assert done.returncode == 1
    assert "one process" in done.stderr and "torchrun" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "here" / "pipeline.json").exists()
