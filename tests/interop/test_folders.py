"""Folders of the hub's cache, by any spelling, and links that lead out."""

import pathlib
import shutil

import pytest

from panda_jax import UserError
from panda_jax.interop.folders import inside, json_inside, snapshot

CONFIG = "config.json"
HASH = "ab" * 32
OUT = "is a link to outside the folder"


@pytest.fixture
def cache(tmp_path) -> pathlib.Path:
    """A cache as huggingface_hub lays it out, with one model."""
    model = tmp_path / "hub" / "models--org--name"
    (model / "blobs").mkdir(parents=True)
    (model / "blobs" / "1234").write_text('{"a": 1}')
    place = model / "snapshots" / "abcd"
    (place / "0_Transformer").mkdir(parents=True)
    (place / CONFIG).symlink_to("../../blobs/1234")
    (place / "0_Transformer" / CONFIG).symlink_to("../../../blobs/1234")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abcd")
    return tmp_path / "hub"


@pytest.fixture
def main(cache) -> pathlib.Path:
    return cache / "models--org--name" / "snapshots" / "abcd"


def read(folder) -> dict:
    return json_inside(pathlib.Path(folder), CONFIG, what="configuration")


def test_a_snapshot_by_any_spelling(cache, main, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(main)
    (tmp_path / "further").symlink_to(tmp_path / "link")
    (tmp_path / "whole").symlink_to(cache / "models--org--name")
    (tmp_path / "cache").symlink_to(cache)
    monkeypatch.chdir(main)
    for spelling in (
        main,
        f"{main}/",
        main / "0_Transformer" / "..",
        main / ".." / "abcd",
        ".",
        "../abcd",
        "0_Transformer",
        tmp_path / "link",
        tmp_path / "further",
        tmp_path / "link" / "0_Transformer",
        tmp_path / "whole" / "snapshots" / "abcd",
        tmp_path / "cache" / "models--org--name" / "snapshots" / "abcd",
    ):
        assert read(spelling) == {"a": 1}, spelling


def test_the_same_links_elsewhere_lead_out(cache, main, tmp_path):
    for where in (
        cache / "models--org--name" / "other" / "abcd",
        cache / "other" / "snapshots" / "abcd",
    ):
        shutil.copytree(main, where, symlinks=True)
        blobs = where.parent.parent / "blobs"
        if not blobs.exists():
            shutil.copytree(cache / "models--org--name" / "blobs", blobs)
        with pytest.raises(UserError, match=OUT):
            read(where)
    # A link to a snapshot is one; links to its files are not.
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / CONFIG).symlink_to(main / CONFIG)
    with pytest.raises(UserError, match=OUT):
        read(mine)


def test_a_snapshot_leads_to_its_own_blobs_alone(cache, main, tmp_path):
    model = cache / "models--org--name"
    other = shutil.copytree(model, cache / "models--x--y", symlinks=True)
    secret = tmp_path / "secret"
    secret.write_text('{"a": 2}')
    for target in (other / "blobs" / "1234", secret, model / "refs" / "main"):
        (main / CONFIG).unlink()
        (main / CONFIG).symlink_to(target)
        with pytest.raises(UserError, match=OUT):
            read(main)
    # Neither a blob nor all of them may be a link to somewhere else.
    (main / CONFIG).unlink()
    (main / CONFIG).symlink_to("../../blobs/1234")
    assert read(main) == {"a": 1}
    (model / "blobs" / "1234").unlink()
    (model / "blobs" / "1234").symlink_to(secret)
    with pytest.raises(UserError, match=OUT):
        read(main)
    shutil.rmtree(model / "blobs")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1234").write_text('{"a": 3}')
    (model / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=OUT):
        read(main)


def test_the_store_that_the_models_of_a_cache_share(cache, main):
    """As huggingface_hub 2.4 makes it; a folder without its mark is none."""
    blob = cache / "models--org--name" / "blobs" / "1234"
    store = cache / "blobs"
    place = store / HASH[:2] / HASH
    place.parent.mkdir(parents=True)
    blob.rename(place)
    blob.symlink_to(f"../../blobs/{HASH[:2]}/{HASH}")
    with pytest.raises(UserError, match=OUT):
        read(main)
    (store / ".huggingface-shared-blobs").write_text("1\n")
    assert read(main) == {"a": 1}
    place.rename(store / "private")
    blob.unlink()
    blob.symlink_to("../../blobs/private")
    with pytest.raises(UserError, match=OUT):
        read(main)


def test_a_model_of_the_cache_is_its_main_snapshot(cache, main, tmp_path):
    model = cache / "models--org--name"
    (tmp_path / "link").symlink_to(model)
    for folder in (model, pathlib.Path(f"{model}/"), tmp_path / "link"):
        assert snapshot(folder).resolve() == main
    # Fetched by its commit alone.
    shutil.rmtree(model / "refs")
    assert snapshot(model) == main
    shutil.copytree(main, main.parent / "ef01", symlinks=True)
    with pytest.raises(UserError, match=r"there are \['abcd', 'ef01'\]"):
        snapshot(model)
    for text in ("ef01\n", "gone", "..", "../../models--org--name/x", ""):
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / "main").write_text(text)
        if text == "ef01\n":
            assert snapshot(model).name == "ef01"
            continue
        with pytest.raises(UserError, match="names the snapshot"):
            snapshot(model)
    assert snapshot(main) == main
    assert snapshot(tmp_path) == tmp_path


def test_a_file_that_is_there_itself_needs_no_layout(tmp_path):
    (tmp_path / CONFIG).write_text("{}")
    assert inside(tmp_path, CONFIG) == tmp_path / CONFIG
