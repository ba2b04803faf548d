"""What a server shows: no secret in what `sqft serve` prints, nothing but its pulse to those without its key, and
why an adapter will not be served."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from helpers_adapters import write_adapter

from sqft_plugins.errors import SQFTError
from sqft_plugins.hiding import hide, hide_variables
from vllm_ext.serve.command import api_server, build, check_adapters, not_served
from vllm_ext.serve.guard import OPEN, KeyEverywhere
from vllm_ext.serve.server import Server

# --- secrets ---


@pytest.mark.parametrize(
    "words",
    [
        ["--api-key", "S3CRET"], ["--api-key=S3CRET"], ["--api_key", "S3CRET"], ["--api-k", "S3CRET"],
        ["--api-key", "S3CRET", "S3CRET-2", "--port", "1"], ["--hf-token", "S3CRET"], ["--hf-tok=S3CRET"],
        ["--ssl-keyfile-password", "S3CRET"], ["--some-secret", "S3CRET"], ["--watermark-config", '{"seed": "S3CRET"}'],
        ["--kv-transfer-config", '{"extra": {"password": "S3CRET", "hosts": [{"token": "S3CRET"}]}}'],
        ["--model-loader-extra-config=" + json.dumps({"aws_secret_access_key": "S3CRET"})],
        ["--kv-transfer-config.kv_connector_extra_config.password", "S3CRET"],
        ["--otlp-traces-endpoint", "https://me:S3CRET@traces.org/x"],
    ],
)  # fmt: skip
def test_no_secret_of_a_command_line_is_shown(words) -> None:
    server = Server(["python", *words], {"VLLM_API_KEY": "S3CRET", "SQFT_PLANE_DIR": "/planes"}, "127.0.0.1", 1, "base")
    for shown in (server.shell(), json.dumps(server.as_dict()), server.curl("base")):
        assert "S3CRET" not in shown
    assert "***" in server.shell()
    assert server.command[1:] == words  # what is started has them


@pytest.mark.parametrize(
    "words",
    [
        ["--ssl-keyfile", "/etc/key.pem", "--port", "80"], ["--max-num-batched-tokens", "512"],
        ["--return-tokens-as-token-ids", "--max-model-len", "9"], ["--tokenizer", "org/n", "--api-server-count", "2"],
        ["--override-generation-config", '{"max_new_tokens": 5}'], ["--allowed-origins", '["https://a.org"]'],
        ["--chat-template", "{% if x %}"], ["--seed", "-1"],
    ],
)  # fmt: skip
def test_what_is_no_secret_is_shown_as_it_is(words) -> None:
    assert hide(words) == words


def test_variables_are_shown_by_the_same_rule() -> None:
    shown = hide_variables({"VLLM_API_KEY": "a", "HF_TOKEN": "b", "SQFT_ADAPTERS_DIR": "/x", "P": "redis://u:p@h"})
    assert shown == {"VLLM_API_KEY": "***", "HF_TOKEN": "***", "SQFT_ADAPTERS_DIR": "/x", "P": "redis://***@h"}


# --- the key ---


def status(path: str, keys: list[str] | None, kind: str = "http", method: str = "POST", **headers: str) -> int | str:
    """Of a request to an app behind the guard, in a server that was started with these keys."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    server = SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(api_key=keys)))
    given = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "path": path, "method": method, "headers": given, "app": server}
    asyncio.run(KeyEverywhere(app)(scope, receive, send))
    return sent[0].get("status", sent[0]["type"])


PATHS = [
    "/v1/completions", "/v1/models", "/invocations", "/tokenize", "/detokenize", "/scale_elastic_ep", "/pooling",
    "/score", "/docs", "/openapi.json", "/server_info", "/v1", "/", "//health", "/health/", "/health/../v1/models",
    "/HEALTH", "/metrics/x", "/sleep", "/collective_rpc", "/start_profile",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_everything_but_the_pulse_wants_the_key(path) -> None:
    assert status(path, ["mine", "yours"]) == 401
    for wrong in ("Bearer other", "Bearer ", "mine", "Basic mine", "Bearer mine "):
        assert status(path, ["mine", "yours"], Authorization=wrong) == 401
    assert status(path, ["mine", "yours"], Authorization="Bearer yours") == 200
    assert status(path, ["mine"], Authorization="bearer mine") == 200


@pytest.mark.parametrize("path", OPEN)
def test_the_pulse_needs_none(path) -> None:
    assert status(path, ["mine"], method="GET") == 200


def test_a_server_without_a_key_is_open_and_the_variable_is_one(monkeypatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert status("/tokenize", None) == 200
    monkeypatch.setenv("VLLM_API_KEY", "mine")
    assert status("/tokenize", None) == 401
    assert status("/tokenize", None, Authorization="Bearer mine") == 200
    assert status("/tokenize", ["other"], Authorization="Bearer mine") == 401  # vLLM's rule: the option wins


def test_a_preflight_of_a_browser_passes_and_a_socket_is_closed() -> None:
    assert status("/v1/completions", ["mine"], method="OPTIONS") == 200
    assert status("/v1/realtime", ["mine"], kind="websocket") == "websocket.close"
    assert status("/health", ["mine"], kind="websocket") == "websocket.close"
    assert status("/v1/realtime", ["mine"], kind="websocket", Authorization="Bearer mine") == 200


def test_every_server_has_the_guard_and_an_open_one_is_told(tiny_int4) -> None:
    folder = tiny_int4("llama")
    plain = build(folder, launcher=api_server)
    assert "vllm_ext.serve.guard.KeyEverywhere" in plain.command
    assert not any("whoever reaches it" in note for note in plain.notes)
    wide = build(folder, host="0.0.0.0", launcher=api_server)
    assert any("whoever reaches it may use it; set VLLM_API_KEY" in note for note in wide.notes)
    for keyed in (
        build(folder, host="0.0.0.0", launcher=api_server, passed=["--api-key", "x"]),
        build(folder, host="0.0.0.0", launcher=api_server, environment={"VLLM_API_KEY": "x"}),
    ):
        assert not any("whoever reaches it" in note for note in keyed.notes)


# --- adapters that will not be served ---


def test_an_adapters_own_folder_is_no_directory_of_adapters(tmp_path) -> None:
    write_adapter(tmp_path / "math")
    with pytest.raises(SQFTError, match=f"is an adapter itself: give the folder it lies in, {tmp_path}$"):
        check_adapters(tmp_path / "math")
    (tmp_path / "math" / "adapter_config.json").unlink()
    with pytest.raises(SQFTError, match="is an adapter itself"):
        check_adapters(tmp_path / "math")
    check_adapters(tmp_path)


def test_what_will_not_be_served_is_told_at_the_start(tmp_path) -> None:
    assert not_served(tmp_path) == [f"names: none yet, {tmp_path} has no subfolder with an adapter_config.json"]
    write_adapter(tmp_path / "good")
    assert not_served(tmp_path) == []
    write_adapter(tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (told,) = not_served(tmp_path)
    assert told.startswith("cut is not served: ")
    assert "cut off" in told
    write_adapter(tmp_path / "masked", sparse=True)
    assert not_served(tmp_path)[1].startswith("masked is not served: it is masked: ")


def test_links_out_and_ranks_that_vllm_does_not_take_are_told_at_the_start(tmp_path) -> None:
    root, elsewhere = tmp_path / "adapters", write_adapter(tmp_path / "elsewhere")
    root.mkdir()
    (root / "linked").symlink_to(elsewhere)
    (root / "nothing").symlink_to(tmp_path / "nothing")
    assert not_served(root) == [f"linked is not served: adapter 'linked' is a link out of {root}: copy it there"]
    write_adapter(root / "blob")
    (root / "blob" / "adapter_model.safetensors").unlink()
    (root / "blob" / "adapter_model.safetensors").symlink_to(elsewhere / "adapter_model.safetensors")
    write_adapter(root / "large", r=600, choices=None, peft_type="LORA")
    blob, large = [reason for reason in not_served(root) if not reason.startswith("linked")]
    assert blob.startswith("blob is not served: adapter 'blob': adapter_model.safetensors is a link out of")
    assert large == "large is not served: it has rank 600, vLLM takes 512"


@pytest.mark.parametrize("words", [["--pipeline-parallel-size", "2"], ["-pp", "2"], ["--pipeline_parallel_size=2"]])
def test_pipeline_parallelism_is_refused_with_adapters_and_only_with_them(tiny_int4, tmp_path, words) -> None:
    with pytest.raises(SQFTError, match="adapters are not served with pipeline parallelism yet"):
        build(tiny_int4("llama"), tmp_path, launcher=api_server, passed=words)
    build(tiny_int4("llama"), launcher=api_server, passed=words)
    build(tiny_int4("llama"), tmp_path, launcher=api_server, passed=["-pp", "1", "-tp", "2"])


def test_a_server_that_vllm_was_told_to_run_in_a_pipeline_does_not_come_up() -> None:
    pytest.importorskip("vllm")
    from vllm_ext.adapters.kinds import check_parallel

    check_parallel(SimpleNamespace(parallel_config=SimpleNamespace(pipeline_parallel_size=1)))
    with pytest.raises(SQFTError, match="--pipeline-parallel-size 2: adapters are not served"):
        check_parallel(SimpleNamespace(parallel_config=SimpleNamespace(pipeline_parallel_size=2)))
