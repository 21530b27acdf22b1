"""The judge's contract, and what happens where it is slow, wrong or away."""

import json
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import pytest
from http_judge import HTTPJudge

from rlhf_core.contracts.data import Prompt
from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import UserError
from rlhf_core.testing import parametrize_with_checks


class Judge(ThreadingHTTPServer):
    """Scores a response by its length; ``plan`` has what it does before that, request by request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.plan, self.seen, self.busy, self.most = Lock(), [], [], 0, 0
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/score"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        judge = self.server
        items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
        with judge.lock:
            judge.seen.append([item["response"] for item in items])
            judge.busy += 1
            judge.most = max(judge.most, judge.busy)
            act = judge.plan.pop(0) if judge.plan else "answer"
        if act in ("slow", "late"):
            time.sleep(3 if act == "slow" else 0.3)
        answer = {"scores": [float(len(item["response"])) for item in items]} if act != "nonsense" else {"scores": "no"}
        if act == "token":
            answer = {"scores": [float(self.headers["Authorization"] == "Bearer secret")] * len(items)}
        with judge.lock:
            judge.busy -= 1
        try:
            self.send_response(act if isinstance(act, int) else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())
        except OSError:
            pass  # the client has given up, as it should

    def log_message(self, *_):
        """Quiet."""


CHECKED = Judge()


@parametrize_with_checks(HTTPJudge(url=CHECKED.url, batch_size=3))
def test_contract(check):
    check()


@pytest.fixture
def judge():
    server = Judge()
    yield server
    server.shutdown()
    server.server_close()


def ask(judge, count=5, **settings):
    reward = HTTPJudge(url=judge.url, batch_size=2, longest_wait=0.01, **settings)
    reward.setup(None)
    return reward.score_parts(Samples([Prompt(text="x")] * count, ["a" * (n + 1) for n in range(count)]))


def test_batched_several_at_once_and_in_order(judge):
    judge.plan = ["late", "answer", "answer"]
    assert ask(judge)["verdict"].tolist() == [1, 2, 3, 4, 5]
    assert sorted(map(len, judge.seen)) == [1, 2, 2]
    assert judge.most > 1


@pytest.mark.parametrize("fault", [500, 503, 429, "slow"])
def test_errors_that_pass_are_tried_again(judge, fault):
    judge.plan = [fault, fault]
    found = ask(judge, count=2, timeout=0.5)
    assert (found["verdict"].tolist(), found["failed"].tolist()) == ([1, 2], [0, 0])
    assert len(judge.seen) >= 3


@pytest.mark.parametrize(("fault", "attempts"), [(400, 1), ("nonsense", 1), (500, 4), ("slow", 2)])
def test_a_failure_stops_the_run_by_default(judge, fault, attempts):
    judge.plan = [fault] * 8
    with pytest.raises(UserError, match=r"reward.url: the judge at .* failed: .*reward.on_failure=score"):
        ask(judge, count=2, timeout=0.3, attempts=max(attempts, 2))
    assert len(judge.seen) == attempts


def test_or_gives_a_stated_score_and_is_counted(judge, caplog):
    judge.plan = [400]
    found = ask(judge, on_failure="score", failure_score=-1.5, concurrency=1)
    failed = found["failed"].tolist()
    assert Counter(failed) == {0.0: 3, 1.0: 2}
    assert found["verdict"].tolist() == [-1.5 if bad else n + 1 for n, bad in enumerate(failed)]
    assert "2 responses get -1.5" in caplog.text


def test_a_judge_that_is_away():
    with pytest.raises(UserError, match=r"failed: .*onnect"):
        ask(Away, count=1)


class Away:
    """Nobody listens there."""

    url = "http://127.0.0.1:9/score"


def test_secrets_come_from_the_environment(judge, monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    judge.plan = ["token"]
    assert ask(judge, count=1, token_variable="JUDGE_TOKEN")["verdict"].tolist() == [1]
    monkeypatch.delenv("JUDGE_TOKEN")
    with pytest.raises(UserError, match="JUDGE_TOKEN is not set"):
        ask(judge, count=1, token_variable="JUDGE_TOKEN")


@pytest.mark.parametrize("wrong", [{"on_failure": "skip"}, {"attempts": 0}, {"batch_size": 0}, {"concurrency": 0}])
def test_bad_settings(judge, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        HTTPJudge(**({"url": judge.url} | wrong)).setup(None)
