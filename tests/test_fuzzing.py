"""A few changed inputs for every reader; `tests/fuzzing.py` gives thousands."""

import dataclasses
import pathlib
import random
import time

import fuzzing
import fuzzing_changes as changes
import numpy as np
import pytest
from fuzzing_readers import READERS, Reader

from panda_jax.errors import UserError

INPUTS = 25
# Whose inputs take milliseconds, not less.
SLOW = {
    "backbone": 10,
    "shards": 10,
    "layouts": 10,
    "t5x": 6,
    "orbax": 6,
    "gin": 10,
}


@pytest.mark.parametrize("name", READERS)
def test_what_is_wrong_is_refused_and_nothing_else(name, tmp_path, monkeypatch):
    # A reader of the cache sets it.
    monkeypatch.setenv("PANDA_CACHE_DIR", str(tmp_path / "cache"))
    found = fuzzing.fuzz(
        READERS[name],
        SLOW.get(name, INPUTS),
        seed=7,
        root=tmp_path / "box",
    )
    assert found.failures == {}
    assert found.accepted + found.refused == found.inputs > 0
    # The changes are no mere noise, nor do they change nothing.
    assert found.refused


def _reader(read) -> Reader:
    """Of a file of eight bytes."""

    def write(root):
        (root / "a").mkdir()
        (root / "a" / "x").write_bytes(b"harmless")

    return Reader(
        "made up",
        write,
        lambda folder, seed: read(folder / "x"),
        {"x": (changes.by_bytes,)},
        guarded=True,
    )


def _run(read, tmp_path, inputs=200):
    reader = _reader(lambda path: read(path, path.read_bytes()))
    found = fuzzing.fuzz(reader, inputs, seed=0, root=tmp_path / "box")
    return " ".join(found.failures), found


def _whole(data: bytes) -> bool:
    return data == b"harmless"


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda path, data: None, "opened"),
        (lambda path, data: _whole(data) or data.decode("ascii"), "Unicode"),
        (lambda path, data: _whole(data) or _refuse(""), "without words"),
        (
            lambda path, data: _whole(data) or np.empty(1 << 24, np.uint8),
            "allocated too much",
        ),
        (
            lambda path, data: _whole(data) or _read("/etc/hosts"),
            "/etc/hosts",
        ),
    ],
)
def test_the_fuzzer_sees_what_it_looks_for(read, told, tmp_path):
    """Readers that follow links, crash, say nothing, take memory, or leave."""
    failures, _ = _run(read, tmp_path)
    assert told in failures


def test_the_fuzzer_sees_what_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzing, "SECONDS", 0.05)

    def read(path, data):
        if not _whole(data):
            time.sleep(1)

    failures, _ = _run(read, tmp_path, inputs=2)
    assert "longer than" in failures


def _read(path: str) -> bytes:
    return pathlib.Path(path).read_bytes()


def _refuse(words: str) -> None:
    raise UserError(words)


def test_the_same_seed_makes_the_same_inputs(tmp_path):
    """So that a failure can be repeated, also after others."""
    seen: list[list[bytes]] = []
    for begin in (0, 0, 12):
        seen.append([])

        def read(path, data, seen=seen[-1]):
            seen.append(data)

        reader = dataclasses.replace(
            _reader(lambda path, read=read: read(path, path.read_bytes())),
            guarded=False,
        )
        root = tmp_path / str(len(seen))
        fuzzing.fuzz(reader, 20, seed=0, root=root, begin=begin)
    assert seen[0] == seen[1]
    # The first of each is the seed itself.
    assert seen[2][1:] == seen[0][13:]
    assert len(set(seen[0])) > 10


def test_an_input_leaves_nothing_behind(tmp_path):
    box = fuzzing.Sandbox(tmp_path / "box", READERS["prompt"])

    def content():
        return {
            path: path.read_bytes()
            for path in sorted((tmp_path / "box").rglob("*"))
            if path.is_file() and not path.is_symlink()
        }

    before = content()
    for number in range(60):
        with box.changed(random.Random(number)) as (folder, *_):
            (folder / "new").write_text("x")
        assert content() == before
