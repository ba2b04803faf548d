"""Numbers that nobody can mean are one line, exit code 2, and leave nothing."""

import json

import pytest

from sqft_plugins.cli import main

HUGE = "99999999999999999999"
TRAIN = {
    "--rank": ["0", "-1", "1.5", HUGE],
    "--rank-choices": ["8", "32,0", "a,b", "32,32.0", "", ",", "32;24"],
    "--alpha": ["0", "-1", "nan", "inf"],
    "--dropout": ["-0.1", "1", "nan"],
    "--target-modules": ["", ",", "q_proj,,", "zzz", "("],
    "--steps": ["0", "-1", "1.5", HUGE],
    "--epochs": ["0", "-1", "nan", "inf", "1e300"],
    "--batch-size": ["0", "-1", HUGE],
    "--gradient-accumulation": ["0", "3", HUGE],
    "--learning-rate": ["0", "-1", "nan", "inf"],
    "--warmup-fraction": ["-1", "1", "nan"],
    "--weight-decay": ["-1", "nan"],
    "--max-gradient-norm": ["-1", "nan"],
    "--text-fraction": ["-1", "1", "nan"],
    "--eval-fraction": ["-1", "1", "nan"],
    "--max-length": ["0", "-1", "4"],
    "--eval-every": ["0", "-1"],
    "--checkpoint-every": ["0", "-1"],
    "--seed": ["-1", HUGE],
}
PRUNE = {
    "--sparsity": ["-0.1", "1.1", "nan", "inf", "abc", "", "0:4", "5:4", "2:0", "-2:4", "2:3", "2:4:6"],
    "--sparsity-of": ["down_proj", "=0.5", "down_proj=", "down_proj=2", "down_proj=nan", "zzz=0.5", "(=0.5"],
    "--exclude": ["(", "zzz", "", "*"],
    "--sequences": ["0", "-1", "1.5", HUGE],
    "--length": ["0", "1", "-1", HUGE],
    "--method": ["nope", ""],
}
QUANTIZE = {"--group-size": ["0", "-2", "7", "128", "1.5", HUGE], "--sequences": ["0", HUGE], "--length": ["1", HUGE]}


def cases(options):
    return [(name, value) for name, values in options.items() for value in values]


@pytest.fixture
def refused(capfd, tmp_path):
    """Runs a verb that must be refused → the line."""

    def run(*arguments) -> str:
        out = tmp_path / "results" / "out"
        out.parent.mkdir()
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, arguments), "--out", str(out)])
        output = capfd.readouterr()
        assert stopped.value.code == 2
        assert "Traceback" not in output.err
        assert list(out.parent.iterdir()) == []
        return output.err.strip().splitlines()[-1]

    return run


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"Q {i}", "completion": f" A {i}"}) for i in range(8)))
    return file


@pytest.mark.parametrize(("option", "value"), cases(TRAIN))
def test_train(refused, pruned, data, option, value) -> None:
    size = [] if option in ("--steps", "--epochs") else ["--steps", "1"]
    batch = [] if option == "--batch-size" else ["--batch-size", "4"]
    line = refused("train", pruned, "--data", data, *size, *batch, option, value)
    word = option.removeprefix("--").replace("-", "_")
    assert word in line.replace("-", "_") or value in line


@pytest.mark.parametrize(("option", "value"), cases(PRUNE))
def test_prune(refused, tiny_llama, option, value) -> None:
    sparsity = [] if option == "--sparsity" else ["--sparsity", "0.5"]
    refused("prune", tiny_llama, *sparsity, option, value)


@pytest.mark.parametrize(("option", "value"), cases(QUANTIZE))
def test_quantize(refused, pruned, option, value) -> None:
    method = [] if option == "--group-size" else ["--method", "gptq"]
    refused("quantize", pruned, *method, option, value)


@pytest.fixture(scope="module")
def adapter(pruned, tmp_path_factory):
    """An untrained elastic adapter over `pruned`."""
    from peft import get_peft_model

    from peft_ext import SQFTConfig
    from sqft_plugins.checkpoint import load_model

    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    config = SQFTConfig(r=8, rank_choices=[8, 6, 4], target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_model(pruned), config).save_pretrained(folder)
    return folder


RANKS = ["0", "-1", "9", "r0", "@", "6.0", "", "max ", "True", "nope.json", HUGE]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("verb", ["merge", "extract"])
def test_ranks(refused, pruned, adapter, verb, rank) -> None:
    base = [pruned] if verb == "merge" else []
    assert "rank" in refused(verb, *base, adapter, "--rank", rank)


@pytest.mark.parametrize("ranks", ['{"q_proj": 6.0}', '{"q_proj": "6"}', '{"q_proj": true}', "[6]", "{}", "6", "{"])
def test_a_file_of_ranks(refused, pruned, adapter, tmp_path, ranks) -> None:
    file = tmp_path / "ranks.json"
    file.write_text(ranks)
    assert "ranks.json" in refused("merge", pruned, adapter, "--rank", file)
