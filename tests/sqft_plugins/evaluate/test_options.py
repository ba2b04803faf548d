"""Options scored side by side are the options scored one by one, for every family and on every runtime."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate import open_session
from sqft_plugins.evaluate.options import Question, batches, score_options, split_pair
from sqft_plugins.evaluate.transformers_engine import TransformersSession, cut
from sqft_plugins.key_values import NAMES


def questions(count: int, length: int, options: int, seed: int = 0) -> list[Question]:
    generator = torch.Generator().manual_seed(seed)

    def ids(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, 640, (size,), generator=generator).tolist())

    return [Question(ids(length), tuple(ids(1 + (at + n) % 4) for at in range(options + n % 2))) for n in range(count)]


def one_by_one(model, question: Question) -> list[tuple[float, bool]]:
    """The definition: the whole text alone, no cache, log-softmax over everything."""
    found = []
    for option in question.options:
        ids = torch.tensor([[*question.context, *option]])
        with torch.no_grad():
            table = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        places = range(len(question.context) - 1, ids.shape[1] - 1)
        found.append(
            (
                sum(float(table[at, token]) for at, token in zip(places, option, strict=True)),
                all(int(table[at].argmax()) == token for at, token in zip(places, option, strict=True)),
            )
        )
    return found


@pytest.mark.parametrize("length", [1, 45])  # 45 is more than Gemma's window of 32
def test_shared_prompts_score_as_whole_texts_do(family, tiny_model, length) -> None:
    model = tiny_model(family).float()
    asked = questions(3, length, 3)
    for question, scores in zip(asked, score_options(model, asked), strict=True):
        for (ours, greedy), (expected, right) in zip(scores, one_by_one(model, question), strict=True):
            assert ours == pytest.approx(expected, abs=2e-4)  # float32, other orders of summation
            assert greedy == right


def test_the_greedy_option_is_known(tiny_model) -> None:
    model = tiny_model("llama")
    (question,) = questions(1, 6, 1)
    with torch.no_grad():
        best = int(model(input_ids=torch.tensor([question.context])).logits[0, -1].argmax())
    other = (best + 1) % 640
    ((first, second),) = score_options(model, [Question(question.context, ((best,), (other,)))])
    assert first[1] is True
    assert second[1] is False
    assert first[0] > second[0]


def test_a_model_whose_cache_has_another_name_is_refused(tiny_model, tiny_tokenizer, monkeypatch) -> None:
    """Without what came before, the scores would be those of other texts."""
    model, (question,) = tiny_model("llama"), questions(1, 40, 2)
    forward = model.forward

    def renamed(*args, **kwargs):
        return {"state" if name in NAMES else name: value for name, value in forward(*args, **kwargs).items()}

    monkeypatch.setattr(model, "forward", renamed)
    with pytest.raises(SQFTError, match=r"LlamaForCausalLM returns .*state and no cache or past_key_values"):
        score_options(model, [question])
    monkeypatch.setattr("sqft_plugins.evaluate.transformers_engine.CHUNK", 17)
    with pytest.raises(SQFTError, match="no cache or past_key_values"):
        TransformersSession(model, tiny_tokenizer("byte-level")).logprobs(question.context)


def test_prompts_of_different_lengths_are_refused(tiny_model) -> None:
    with pytest.raises(ValueError, match="cut them with batches"):
        score_options(tiny_model("llama"), [*questions(1, 3, 2), *questions(1, 4, 2)])


def test_batches_hold_one_length_and_every_question_once() -> None:
    asked = [question for length in (3, 9, 5, 3) for question in questions(5, length, 4, length)]
    found = batches(asked, rows=10)
    assert sorted(place for batch in found for place in batch) == list(range(20))
    lengths = [{len(asked[place].context) for place in batch} for batch in found]
    assert all(len(kinds) == 1 for kinds in lengths)
    assert [kinds.pop() for kinds in lengths] == sorted((len(asked[b[0]].context) for b in found), reverse=True)
    assert all(len(batch) == 1 or sum(len(asked[place].options) for place in batch) <= 10 for batch in found)
    assert len(batches(asked, rows=1)) == 20  # a question is never cut


def test_long_texts_go_through_in_chunks_with_the_same_result(family, tiny_model, tiny_tokenizer, monkeypatch) -> None:
    model = tiny_model(family).float()
    tokens = questions(1, 60, 1)[0].context
    session = TransformersSession(model, tiny_tokenizer("byte-level"))
    whole = session.logprobs(tokens)
    monkeypatch.setattr("sqft_plugins.evaluate.transformers_engine.CHUNK", 17)
    assert len(whole) == 59
    assert torch.allclose(session.logprobs(tokens), whole, atol=1e-4)


def test_texts_are_cut_where_lm_eval_cuts_them(tiny_tokenizer) -> None:
    upstream = pytest.importorskip("lm_eval.api.model").TemplateLM._encode_pair
    tokenizer = tiny_tokenizer("byte-fallback")

    def tokenize(text: str) -> list[int]:
        return tokenizer(text).input_ids

    host = SimpleNamespace(backend="causal", tok_encode=tokenize)
    for pair in (("Answer:", " water"), ("Answer: ", "water"), ("Is it wet?\n", "yes, it is"), ("a \n ", " b")):
        before, after = split_pair(tokenize, *pair)
        assert (before, after) == upstream(host, *pair)
        assert after


def test_a_completion_ends_before_its_stop(tiny_llama) -> None:
    session = open_session(tiny_llama, dtype="float32")
    prompts = ["The water is", "A stone"]
    free = list(session.generate(prompts, 12))
    end = free[0][4:6]
    stopped = list(session.generate(prompts, 12, stop=[end]))
    assert stopped == [cut(text, [end]) for text in free]
    assert len(stopped[0]) <= 4


def test_cut_takes_the_first_of_several_stops() -> None:
    assert cut("one\n\ntwo Question: three", ["Question:", "\n\n"]) == "one"
    assert cut("one", ["Question:"]) == "one"
    assert cut("one", []) == "one"
