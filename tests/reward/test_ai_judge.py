"""A language model as judge: log p(Yes) − log p(No) by the stock forward, whatever is in the batch."""

import pytest
import torch

from rlhf_core.contracts.data import Message, Prompt
from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import UserError
from rlhf_plugins.reward.ai_judge import QUESTION, AIJudge


@pytest.fixture
def judge(start, checkpoints):
    def judge(kind="llama", budget=8192, **options):
        run = start(
            "algorithm=evaluate", "policy=hf", f"policy.path={checkpoints['llama']}", "algorithm.eval_prompts=1",
            f"trainer.microbatch_tokens={budget}",
        ).run  # fmt: skip
        found = AIJudge(path=str(checkpoints[kind]), **options)
        found.setup(run)
        return found

    return judge


SAMPLES = Samples(
    [Prompt(text="what of the film"), Prompt(messages=(Message("user", "the plot?"),)), Prompt(text="the cast")],
    ["it was warm and bright", "bad", ""],
)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_against_the_stock_forward(judge, kind):
    found = judge(kind, good="good", bad="bad and slow")
    scores = found.score(SAMPLES)
    tokenizer, model = found.judge.tokenizer, found.judge.model
    for score, prompt, response in zip(scores, SAMPLES.prompts, SAMPLES.responses, strict=True):
        text = QUESTION.replace("{prompt}", prompt.shown).replace("{response}", response)
        messages = [{"role": "user", "content": text}]
        question = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        sums = []
        for word in ("good", "bad and slow"):
            answer = tokenizer.encode(word, add_special_tokens=False)
            row = torch.tensor([*question, *answer])
            offsets = torch.tensor([0, len(row)], dtype=torch.int32)
            with torch.no_grad():
                logits = model(row[None], cu_seqlens=offsets).logits[0].double().log_softmax(-1)
            sums.append(sum(float(logits[len(question) + place - 1, token]) for place, token in enumerate(answer)))
        assert float(score) == pytest.approx(sums[0] - sums[1], abs=1e-4)


def test_neighbours_and_the_cut_do_not_matter(judge):
    whole = judge().score(SAMPLES)
    cut = judge(budget=1)
    torch.testing.assert_close(cut.score(SAMPLES), whole, rtol=0, atol=1e-5)
    back = cut.score(SAMPLES.select([2, 0, 1]))
    torch.testing.assert_close(back, whole[[2, 0, 1]], rtol=0, atol=1e-5)
    assert cut.score(SAMPLES.select([])).shape == (0,)
    assert float(whole.std()) > 1e-3


def test_it_is_never_trained(judge):
    assert not any(parameter.requires_grad for parameter in judge().judge.model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": "Good? {response}"}, "reward.question: has no {prompt}; expected"),
        ({"good": "No"}, "reward.good and reward.bad: 'No' and 'No' are the same"),
        ({"good": ""}, "reward.good and reward.bad: '' and 'No' are the same"),
    ],
)
def test_refusals(judge, options, message):
    with pytest.raises(UserError) as caught:
        judge(**options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
