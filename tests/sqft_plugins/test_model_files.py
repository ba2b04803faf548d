"""A plug-in opens models that are no folder; a folder is never asked about."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqft_plugins import model_files
from sqft_plugins.checkpoint import ModelFile, ModelFolder, load_tokenizer, open_model
from sqft_plugins.checkpoint.hub import check_model, local_folder
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.plugins import get_manager, hookimpl
from sqft_plugins.structure import transformers_config


class Opened(ModelFile):
    def __init__(self, path: Path):
        self.path, self.said = path, path.read_text()

    def transformers_config(self):
        return f"config of {self.said}"

    def tokenizer(self):
        return f"tokenizer of {self.said}"


class Fake:
    """Files that end in .fake, and names that begin with fake:."""

    name = "fake"

    def __init__(self, folder: Path):
        self.folder, self.opened = folder, 0

    def opens(self, model) -> bool:
        return str(model).endswith(".fake") or str(model).startswith("fake:")

    def locate(self, model) -> Path:
        return self.folder / f"{str(model)[5:]}.fake" if str(model).startswith("fake:") else Path(model)

    def open(self, path: Path) -> Opened:
        self.opened += 1
        return Opened(path)


@pytest.fixture
def fake(tmp_path):
    reader = Fake(tmp_path)

    class Plugin:
        @hookimpl
        def sqft_models(self):
            return [reader]

    manager, plugin = get_manager().manager, Plugin()
    manager.register(plugin)
    (tmp_path / "m.fake").write_text("one")
    yield reader
    manager.unregister(plugin)
    model_files._opened.cache_clear()


def test_a_file_and_a_name_are_one_model_opened_once(fake, tmp_path):
    model = open_model(tmp_path / "m.fake")
    assert isinstance(model, Opened)
    assert open_model("fake:m") is model
    assert local_folder("fake:m") == tmp_path / "m.fake"
    assert transformers_config(tmp_path / "m.fake") == "config of one"
    assert load_tokenizer("fake:m") == "tokenizer of one"
    check_model("fake:m")
    assert fake.opened == 1


def test_a_file_that_changes_is_opened_anew(fake, tmp_path):
    open_model(tmp_path / "m.fake")
    (tmp_path / "m.fake").write_text("another")
    assert open_model(tmp_path / "m.fake").said == "another"


def test_a_folder_is_no_matter_of_plug_ins(fake, tmp_path, tiny_llama, monkeypatch):
    monkeypatch.setattr(model_files, "get_manager", lambda: pytest.fail("a plug-in is asked"))
    assert type(open_model(tiny_llama)) is ModelFolder
    assert local_folder(tiny_llama) == tiny_llama


def test_what_nobody_opens_is_refused_in_a_line(tmp_path):
    (tmp_path / "m.fake").write_text("one")
    with pytest.raises(CheckpointError, match="is a file that no plug-in reads: give a model folder"):
        check_model(tmp_path / "m.fake")
    with pytest.raises(SQFTError, match="is not a folder"):
        open_model(tmp_path / "m.fake")


def test_a_method_that_a_plug_in_leaves_out_is_its_mistake(fake, tmp_path):
    with pytest.raises(NotImplementedError):
        open_model(tmp_path / "m.fake").load()
