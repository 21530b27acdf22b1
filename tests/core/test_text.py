"""From text to tokens: end tokens where they belong, and nowhere else."""

from rlhf_core.contracts.data import Message, Prompt
from rlhf_core.text import decode, encode_document, encode_prompt, encode_response


def test_a_document_begins_and_ends_with_the_end_token(tokenizer):
    end = tokenizer.eos_token_id
    tokens = encode_document(tokenizer, "the film was good")
    assert (tokens[0], tokens[-1], tokens.count(end)) == (end, end, 2)
    assert tokenizer.decode(tokens[1:-1]).strip() == "the film was good"


def test_a_chat_prompt_ends_where_the_assistant_speaks(tokenizer):
    tokens = encode_prompt(tokenizer, Prompt(messages=(Message("user", "what of the film"),)))
    assert tokenizer.convert_ids_to_tokens([tokens[0], tokens[-1]]) == ["<|user|>", "<|assistant|>"]
    assert tokenizer.decode(tokens[1:-1]).strip() == "what of the film"


def test_a_chat_of_several_turns_closes_each_answer(tokenizer):
    turns = (Message("user", "a film"), Message("assistant", "it was good"), Message("user", "and the cast"))
    tokens = encode_prompt(tokenizer, Prompt(messages=turns))
    assert tokens.count(tokenizer.eos_token_id) == 1  # a prompt may contain the end token
    assert tokens[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")


def test_a_plain_prompt_is_taken_as_it_is_and_is_never_empty(tokenizer):
    assert tokenizer.decode(encode_prompt(tokenizer, Prompt(text="the film"))).strip() == "the film"
    assert encode_prompt(tokenizer, Prompt(text="")) == [tokenizer.eos_token_id]


def test_a_response_ends_with_the_end_token_and_decodes_without_it(tokenizer):
    tokens = encode_response(tokenizer, "it was good")
    assert tokens[-1] == tokenizer.eos_token_id
    assert decode(tokenizer, tokens) == "it was good"
    assert encode_response(tokenizer, "") == [tokenizer.eos_token_id]
