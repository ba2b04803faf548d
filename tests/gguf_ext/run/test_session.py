"""llama.cpp as a runtime."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gguf_ext import GGUFError, LlamaCpp, LlamaSession, export_gguf
from gguf_ext.errors import RuntimeFailedError
from sqft_plugins.evaluate.options import Question, score_options

PROMPTS = ["The quick brown fox", "def f(x):\n", "你好"]


@pytest.fixture(scope="module")
def file(llama, tmp_path_factory):
    target = tmp_path_factory.mktemp("runtime") / "m.gguf"
    export_gguf(llama, target, float_type="f32")
    return target


@pytest.fixture(scope="module")
def session(file):
    with LlamaCpp().open(file, threads=1, kv_type="f32", flash_attention=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(llama):
    return AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), AutoTokenizer.from_pretrained(llama)


def test_engine_opens_gguf_files_only(tmp_path):
    assert LlamaCpp().opens(tmp_path / "model.gguf")
    assert not LlamaCpp().opens(tmp_path / "model")


def test_generate_is_the_greedy_completion(session, reference):
    model, tokenizer = reference
    for prompt, completion in zip(PROMPTS, session.generate(PROMPTS, 12), strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
        new = tokens[0, inputs.input_ids.shape[1] :]
        assert completion == tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_generate_stops_before_the_first_stop(session):
    (whole,) = session.generate(PROMPTS[:1], 12)
    middle = whole[len(whole) // 2]
    (cut,) = session.generate(PROMPTS[:1], 12, stop=["never there", middle])
    assert cut == whole[: whole.index(middle)]


def test_logprobs_are_those_of_transformers(session, reference):
    tokens = torch.randint(4, 400, (201,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        logits = reference[0](torch.tensor([tokens])).logits[0, :-1].double()
    wanted = logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].float()
    found = session.logprobs(tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-3)
    assert session.logprobs(tokens[:1]).shape == (0,)
    torch.testing.assert_close(session.logprobs(tokens), found, rtol=0, atol=0)  # nothing is left of the last text


def test_detokenize_gives_the_text_back(session, texts):
    assert session.detokenize(session.tokenize(texts[0])) == texts[0]


def test_too_long_a_text_is_an_error(session):
    with pytest.raises(GGUFError, match="513 tokens do not fit context=512"):
        session.logprobs(list(range(4, 260)) * 2 + [4, 5])
    with pytest.raises(GGUFError, match="do not fit context=512"):
        next(session.generate(["a"], 600))


def test_it_is_quiet(file, capfd):
    with LlamaSession(file, threads=1) as opened:
        list(opened.generate(["a"], 2))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_files_that_do_not_load(file, tmp_path):
    with pytest.raises(GGUFError, match="is not a file"):
        LlamaSession(tmp_path / "none.gguf")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:3000])
    with pytest.raises(RuntimeFailedError, match=r"cannot load .*cut\.gguf"):
        LlamaSession(tmp_path / "cut.gguf")
    with pytest.raises(GGUFError, match="kv_type='q4'"):
        LlamaSession(file, kv_type="q4")


def test_close_twice(file):
    opened = LlamaSession(file, threads=1)
    opened.close()
    opened.close()
    assert opened._context is None


def asked(contexts, options, seed=0):
    """Random questions: prompts and options of these lengths."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(length):
        return tuple(torch.randint(4, 400, (length,), generator=draw).tolist())

    return [Question(tokens(length), tuple(tokens(each) for each in options)) for length in contexts]


@pytest.mark.parametrize(
    ("context", "options"),
    [(30, (3, 1, 7, 3)), (1, (2, 5)), (100, (4,) * 19), (70, (40, 60, 1)), (500, (12, 3, 11, 12)), (512 - 9, (9, 9))],
    ids=["a few", "prompt of one token", "more than fit at once", "longer than a chunk", "little room", "no room"],
)
def test_options_of_one_prompt_score_as_each_alone(session, reference, context, options):
    questions = asked([context] * 2, options)
    found = session.score(questions)
    wanted = score_options(reference[0], questions)
    for question, ours, theirs in zip(questions, found, wanted, strict=True):
        for option, (score, greedy), (other, _) in zip(question.options, ours, theirs, strict=True):
            alone = session.logprobs([*question.context, *option])[-len(option) :].sum()
            # float32 and f32 cache: sums in another order, up to 60 tokens of 5e-3 / 12
            assert score == pytest.approx(float(alone), abs=2e-2)
            assert score == pytest.approx(other, abs=2e-2)
            assert greedy is False  # random tokens


def test_the_greedy_option_is_known(session, reference):
    (question,) = asked([20], (3,))
    with torch.no_grad():
        tokens = reference[0].generate(
            torch.tensor([question.context]), max_new_tokens=4, do_sample=False, pad_token_id=0
        )
    best = tuple(tokens[0, 20:].tolist())
    question = Question(question.context, (best, *question.options, (*best[:-1], (best[-1] + 1) % 400)))
    assert [greedy for _, greedy in session.score([question])[0]] == [True, False, False]


def test_a_question_that_does_not_fit_is_an_error(session):
    with pytest.raises(GGUFError, match="513 tokens do not fit context=512"):
        session.score(asked([510], (1, 3)))
