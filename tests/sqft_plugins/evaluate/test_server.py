"""A server as the model: vLLM's HTTP, spoken here by a tiny model of transformers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from helpers_eval import write_data

from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate import open_session
from sqft_plugins.evaluate.options import Question
from sqft_plugins.evaluate.report import evaluate_model, open_candidate
from sqft_plugins.evaluate.server import ServerSession


@pytest.fixture(scope="module")
def session(tiny_llama):
    return open_session(tiny_llama, dtype="float32")


@pytest.fixture(scope="module")
def server(session):
    class Handler(BaseHTTPRequestHandler):
        def reply(self, answer: dict, status: int = 200) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def do_GET(self) -> None:
            models = [{"id": "base", "max_model_len": 200}, {"id": "math@heuristic", "parent": "base"}]
            self.reply({"data": models})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                self.reply({"tokens": session.tokenize(body["prompt"])})
            elif any(len(prompt) > 900 for prompt in body["prompt"]):
                self.reply({"message": "too long"}, 400)
            else:
                choices = [self.choice(body, prompt) | {"index": n} for n, prompt in enumerate(body["prompt"])]
                self.reply({"choices": choices[::-1]})

        def choice(self, body: dict, prompt) -> dict:
            if not body.get("echo"):
                (text,) = session.generate([prompt], body["max_tokens"], stop=body["stop"])
                return {"text": text}
            with torch.no_grad():
                table = session.model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
            told, top = [None], [None]
            for at, token in enumerate([*prompt[1:], int(table[-1].argmax())]):
                best = int(table[at].argmax())
                told.append(float(table[at, token]))
                top.append({str(token): float(table[at, token]), str(best): float(table[at, best])})
            return {"text": "", "logprobs": {"token_logprobs": told, "top_logprobs": top}}

        def log_message(self, *_) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    http.server_close()


def test_a_server_scores_and_writes_as_the_model_in_it(server, session) -> None:
    asked = ServerSession(server, "base")
    prompts = [f"Question: how many stones {n}?\nAnswer:" for n in range(40)]  # more than one request holds
    assert asked.tokenize(prompts[3]) == session.tokenize(prompts[3])
    assert list(asked.generate(prompts, 6, stop=["e"])) == list(session.generate(prompts, 6, stop=["e"]))
    tokens = session.tokenize(prompts[0])
    assert torch.allclose(asked.logprobs(tokens), session.logprobs(tokens), atol=1e-4)
    with torch.no_grad():
        best = int(session.model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
    questions = [Question(tuple(tokens), ((best,), ((best + 1) % 640, 7, 9)))]
    for told, expected in zip(asked.score(questions)[0], session.score(questions)[0], strict=True):
        assert told[0] == pytest.approx(expected[0], abs=1e-4)
        assert told[1] == expected[1]


def test_a_task_scores_the_same_on_a_server(server, tiny_llama, tmp_path) -> None:
    pytest.importorskip("lm_eval")
    data = write_data(tmp_path)
    here = evaluate_model(
        open_candidate(tiny_llama, cache=False, dtype="float32"), ["arc-easy"], data_dir=data, limit=6
    )
    candidate = open_candidate(None, server=server, served="math@heuristic")
    there = evaluate_model(candidate, ["arc-easy"], data_dir=data, limit=6)
    assert there["results"] == here["results"]
    assert candidate.context == 199  # the base's: an adapter does not tell its own


def test_what_is_wrong_with_a_server_is_told(server) -> None:
    with pytest.raises(SQFTError, match=r"offers 2 models: choose with --model base \| math@heuristic"):
        ServerSession(server)
    with pytest.raises(SQFTError, match=r"--model 'bas' is not served .* did you mean 'base'"):
        ServerSession(server, "bas")
    with pytest.raises(SQFTError, match=r"answers 400: .*too long"):
        list(ServerSession(server, "base").generate(["x" * 1000], 1))
    with pytest.raises(SQFTError, match=r"does not answer .*`sqft serve`"):
        ServerSession("http://127.0.0.1:9", "base")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"status": 1}', "lists no models, so it is no vLLM"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "lists no models, so it is no vLLM"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"data": ', "does not answer .*IncompleteRead"),
    ],
)
def test_what_is_no_vllm_or_dies_is_told(answer, message) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(answer)

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        with pytest.raises(SQFTError, match=message):
            ServerSession(f"http://127.0.0.1:{http.server_port}", "base")
        http.shutdown()
