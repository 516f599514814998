"""Backbones by the names and layouts that others give them."""

import json
import os
import pathlib
import shutil
import sys
import warnings

import huggingface_hub
import numpy as np
import pytest
import torch
import torch_bert
import transformers

from panda_jax import UserError, cli
from panda_jax.data.tokenizer import SPECIALS
from panda_jax.planning import plan
from panda_jax.store import hub
from panda_jax.store.backbones import check_here, load_backbone

NAME, COMMIT = "org/name", "c" * 40
WORDS = [*SPECIALS, *"abcdefgh", *(f"##{c}" for c in "abcdefgh")]


def write(folder: pathlib.Path, name: str = "BertModel") -> pathlib.Path:
    """A model of transformers with a vocabulary."""
    torch.manual_seed(0)
    model = getattr(transformers, name)(torch_bert.config())
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
    return write(tmp_path_factory.mktemp("model") / "bert")


def as_cached(
    made: pathlib.Path, cache: pathlib.Path, leave_out: tuple[str, ...] = ()
) -> pathlib.Path:
    """A model folder as the hub's cache has it -> the model's folder there."""
    model = cache / "models--org--name"
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    place = model / "snapshots" / COMMIT
    for i, path in enumerate(sorted(p for p in made.rglob("*") if p.is_file())):
        name = path.relative_to(made)
        if name.name in leave_out:
            continue
        shutil.copy(path, model / "blobs" / f"{i}")
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (len(name.parts) + 1)
        (place / name).symlink_to(f"{up}blobs/{i}")
    return model


@pytest.fixture
def cache(made, tmp_path, monkeypatch) -> pathlib.Path:
    """An empty one that huggingface_hub takes for its own."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def test_the_hub_s_cache_by_any_spelling(made, cache, tmp_path, monkeypatch):
    plain = load_backbone(str(made))
    model = as_cached(made, cache)
    (tmp_path / "link").symlink_to(model / "snapshots" / COMMIT)
    (tmp_path / "whole").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    snapshot = str(model / "snapshots" / COMMIT)
    for name in (snapshot, "link", "./link/", "whole", str(model)):
        found = load_backbone(name)
        assert found.fingerprint == plain.fingerprint
        assert found.tokenizer.identity == plain.tokenizer.identity
        assert found.folder == snapshot
        check_here(name)
        assert plan.sizes(name) == plain.config


def test_a_name_of_the_hub_is_taken_from_its_cache(made, cache, monkeypatch):
    """By huggingface_hub itself, which finds nothing else here."""
    model = as_cached(made, cache)
    found = load_backbone(NAME)
    assert found.fingerprint == load_backbone(str(made)).fingerprint
    assert (found.id, found.folder) == (NAME, None)
    assert plan.sizes(NAME) == found.config
    assert hub.fetch(NAME) == model / "snapshots" / COMMIT


class Online:
    """`snapshot_download` where the hub can be reached; notes its calls."""

    def __init__(self, source: pathlib.Path, cache: pathlib.Path) -> None:
        self.source, self.cache = source, cache
        self.calls: list[tuple[bool, list[str]]] = []

    def __call__(self, name, *, allow_patterns, local_files_only):
        assert name == NAME
        self.calls.append((local_files_only, allow_patterns))
        place = self.cache / "models--org--name" / "snapshots" / COMMIT
        if local_files_only:
            if not place.is_dir():
                raise FileNotFoundError("not in the cache")
            return str(place)
        every = [
            str(p.relative_to(self.source))
            for p in self.source.rglob("*")
            if p.is_file()
        ]
        for file in huggingface_hub.utils.filter_repo_objects(
            every, allow_patterns=allow_patterns
        ):
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.source / file, place / file)
        return str(place)


def test_only_what_is_read_is_fetched(made, cache, tmp_path, monkeypatch):
    source = shutil.copytree(made, tmp_path / "source")
    for name in ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"large")
    (source / "model.fp16.safetensors").write_bytes(b"large")
    online = Online(source, cache)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", online)
    found = load_backbone(NAME)
    assert found.fingerprint == load_backbone(str(made)).fingerprint
    place = cache / "models--org--name" / "snapshots" / COMMIT
    assert {path.name for path in place.iterdir()} == {
        "config.json",
        "model.safetensors",
        "vocab.txt",
    }
    assert [local for local, _ in online.calls] == [True, False]
    # The next time nobody is asked.
    load_backbone(NAME)
    assert [local for local, _ in online.calls] == [True, False, True]


@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_torch_files_are_fetched_where_there_is_nothing_else(
    made, cache, tmp_path, monkeypatch, place
):
    source = shutil.copytree(made, tmp_path / "source" / place)
    model = transformers.BertModel.from_pretrained(source)
    (source / "model.safetensors").unlink()
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    online = Online(tmp_path / "source", cache)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", online)
    found = load_backbone(NAME)
    assert found.fingerprint == load_backbone(str(made)).fingerprint
    assert [local for local, _ in online.calls] == [True, False, False]


def test_a_model_that_cannot_be_fetched_says_what_to_run(
    made, cache, monkeypatch, capsys
):
    asked = r"cannot be fetched \(.*\).*run: hf download org/name"
    for check in (load_backbone, check_here, plan.sizes):
        with pytest.raises(UserError, match=asked):
            check(NAME)
    assert cli.main(["train", f"--backbone={NAME}", "--task=toy_tense"]) == 2
    assert "run: hf download org/name" in capsys.readouterr().err
    # A cache without the weights is not enough, and says so when nobody
    # can be asked.
    as_cached(made, cache, leave_out=("model.safetensors",))
    with pytest.raises(UserError, match=r"has no config.json with weights"):
        load_backbone(NAME)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="huggingface_hub is not installed"):
        load_backbone(NAME)


def test_a_path_that_was_misspelt_is_nobody_s_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()

    def never(*given, **named):
        raise AssertionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    for name in ("runs/bert", "./org/name", "/org/name", "a/b/c", "~/x"):
        with pytest.raises(UserError, match="does not exist"):
            load_backbone(name)


def test_a_model_of_sentence_transformers(made, tmp_path):
    """Its encoder and that one's tokenizer, of the folder or of one in it."""
    shutil.copytree(made, tmp_path / "0_Transformer")
    modules = [
        {"path": "0_Transformer", "type": "sentence_transformers.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    found = load_backbone(str(tmp_path))
    plain = load_backbone(str(made))
    assert found.fingerprint == plain.fingerprint
    assert found.tokenizer.identity == plain.tokenizer.identity
    assert found.folder == os.path.realpath(tmp_path / "0_Transformer")


def test_a_backbone_without_a_pooler_says_what_heads_read(made, tmp_path):
    write(tmp_path / "mlm", "BertForMaskedLM")
    with pytest.warns(RuntimeWarning, match="no pooler: a head of whole texts"):
        found = load_backbone(str(tmp_path / "mlm"))
    assert not found.config.pooler
    assert all(np.isfinite(x).all() for x in found.params["token"].values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_backbone(str(made))
