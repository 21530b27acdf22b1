"""The command as people run it: a process of its own."""


def test_train_with_a_strangers_reward(rlhf, still, tmp_path):
    run = rlhf("train", *still, "reward=thirdparty", "reward.scale=5", "--cfg", "job")
    assert (run.returncode, run.stderr) == (0, "")
    assert "scale: 5.0" in run.stdout
    assert list(tmp_path.iterdir()) == []


def test_composing_imports_only_what_was_chosen(rlhf, site, still, tmp_path):
    check = "import atexit, sys; atexit.register(lambda: print(sorted(sys.modules), file=sys.stderr))"
    (tmp_path / "sitecustomize.py").write_text(check)
    run = rlhf("train", *still, "reward=thirdparty", "--cfg", "job", path=(tmp_path, site))
    loaded = run.stderr
    assert "'rlhf_good.rewards'" in loaded
    assert "'torch'" not in loaded  # the default policy, data and rollout stay untouched
    assert "'rlhf_plugins" not in loaded
    assert "'rlhf_oldapi'" not in loaded


def test_help_names_the_strangers_options(rlhf):
    text = rlhf("train", "--help").stdout
    assert "thirdparty" in text
    assert "loud" in text


def test_editable_install(rlhf, still, editable):
    hook, source = editable
    run = rlhf("train", *still, "reward=loud", "--cfg", "job", "-p", "reward", path=(hook,))
    assert run.stderr == ""
    assert "scale: 11.0" in run.stdout
    assert str(source) in rlhf("info", "reward=thirdparty", path=(hook,)).stdout


def test_shell_completion(rlhf, still):
    def complete(line: str) -> list[str]:
        return rlhf("-sc", "query=bash", COMP_LINE=line).stdout.split()

    assert complete("rlhf tr") == ["train"]
    assert complete("rlhf train alg") == ["algorithm.", "algorithm="]
    assert complete("rlhf train reward=third") == ["reward=thirdparty"]
    assert complete("rlhf train +reward@reward.parts.x=brev") == ["+reward@reward.parts.x=brevity"]
    typed = f"rlhf train {' '.join(still)} reward=thirdparty reward."
    assert complete(typed) == ["reward.floor=", "reward.marks.", "reward.scale="]
    assert "complete -o nospace -o default -F hydra_bash_completion rlhf" in rlhf("-sc", "install=bash").stdout
