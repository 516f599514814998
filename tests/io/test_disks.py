"""Full and read-only disks, names that are no ASCII, and many at once."""

import concurrent.futures
import contextlib
import errno
import json
import os
import pathlib
import resource
import stat
import subprocess
import sys

import made_up_bank
import made_up_data
import made_up_runs
import numpy as np
import pytest
from command_line import mistake

import panda_jax as pj
from panda_jax import cli
from panda_jax.cli import entry
from panda_jax.errors import StorageError
from panda_jax.interop import hf, npy, tensors
from panda_jax.io import files, ownership
from panda_jax.prompts import Prompt
from panda_jax.store import prompt_folders
from panda_jax.training import predictions
from panda_jax.transfer import pictures
from panda_jax.transfer.scores import Scores
from panda_jax.transfer.vector_cache import VectorCache

# Spaces, quotes, other scripts, and what Matplotlib, gin and shells read more
# into than is there.
ODD = 'Zoë\'s "数据" $x_{ 100% #1 {a} @b'


@pytest.fixture(scope="module")
def bank(tiny, tmp_path_factory) -> pathlib.Path:
    return made_up_bank.write(tmp_path_factory.mktemp("banks") / "bank", tiny)


def state(*folders: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    """All that is below folders; who makes a file there changes it."""
    return {
        str(path): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for folder in folders
        for path in sorted([folder, *folder.rglob("*")])
    }


# Full disks.


@contextlib.contextmanager
def room(size: int):
    """The system lets no file be larger; it is the same to who writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _prompt(folder: pathlib.Path, tiny, value: float) -> None:
    prompt = Prompt(np.full((500, 16), value, np.float32), {})
    info = prompt_folders.PromptInfo("cb", "b", "f" * 16, "shallow", "prompt")
    prompt_folders.save_prompt(folder / "prompt", prompt, info)


def _model(folder: pathlib.Path, tiny, value: float) -> None:
    hf.save(folder / "model", tiny.params, tiny.config)


def _table(folder: pathlib.Path, tiny, value: float) -> None:
    names = tuple(f"name {i}" for i in range(60))
    found = Scores(names, names, {"on": np.full((60, 60), value)})
    found.to_csv(folder / "scores.csv")


def _map(folder: pathlib.Path, tiny, value: float) -> None:
    names = [f"name {i}" for i in range(20)]
    matrix = np.full((20, 20), value)
    pictures.heatmap(folder / "m.png", matrix, rows=names, columns=names)


def _json(folder: pathlib.Path, tiny, value: float) -> None:
    files.write_json(folder / "result.json", {"values": [value] * 5000})


def _npy(folder: pathlib.Path, tiny, value: float) -> None:
    npy.write(folder / "p.npy", np.full((500, 16), value))


def _answers(folder: pathlib.Path, tiny, value: float) -> None:
    predictions.write_predictions(folder, [{"prediction": value}] * 2000)


WRITERS = [_prompt, _model, _table, _map, _json, _npy, _answers]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_costs_nothing_that_was_there(write, tiny, tmp_path):
    write(tmp_path, tiny, 1.0)
    before = {p: x for p, (_, x) in state(tmp_path).items()}
    with room(4096), pytest.raises((OSError, StorageError)) as error:
        write(tmp_path, tiny, 2.0)
    assert {p: x for p, (_, x) in state(tmp_path).items()} == before
    if isinstance(error.value, OSError):
        # Which the command line tells in words.
        assert error.value.errno in entry._USERS_ERRNOS
    else:
        assert "could not be written" in str(error.value)


CODES = [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT]


def refuse(monkeypatch, folder: pathlib.Path, code: int) -> None:
    """As a disk that is full, or that this user may not write to."""
    real = {name: getattr(os, name) for name in ("open", "mkdir", "replace")}

    def refusing(name: str):
        def call(path, *given, **options):
            flags = given[0] if name == "open" and given else os.O_CREAT
            place = os.path.abspath(path)
            if flags & os.O_CREAT and place.startswith(f"{folder}{os.sep}"):
                raise OSError(code, os.strerror(code), str(path))
            return real[name](path, *given, **options)

        return call

    for name in real:
        monkeypatch.setattr(os, name, refusing(name))


def verbs_that_write(bank: pathlib.Path, folder: pathlib.Path) -> list:
    """Arguments of each that takes no compiling."""
    vectors = folder.parent / "mrpc.npy"
    np.save(vectors, np.ones((4, 8), np.float32))
    made_up_runs.write_run(folder.parent / "runs", "a", value=0.5)
    truth = folder.parent / "truth.csv"
    names = [
        f"{a},{b},0.{len(a)}{len(b)}" for a in ("x", "yy", "zzz") for b in "vw"
    ]
    truth.write_text("\n".join(["source,target,score", *names]) + "\n")
    scores = folder.parent / "scores.csv"
    rows = [f"{line},on" for line in names]
    scores.write_text("\n".join(["source,target,score,metric", *rows]) + "\n")
    return [
        ["import", "npy", str(vectors), f"--out_dir={folder}/a"],
        ["export", "peft", str(bank / "toy_review"), f"--out_dir={folder}/b"],
        [
            "score",
            f"--sources={bank}",
            "--metrics=e_avg",
            f"--out_dir={folder}/c",
        ],
        ["report", f"--runs={folder.parent}/runs", f"--out_dir={folder}/d"],
        [
            "evaluate-ranking",
            f"--scores={scores}",
            f"--truth={truth}",
            "--resamples=10",
            "--permutations=10",
            f"--out_dir={folder}/e",
        ],
        [
            "tasks",
            "toy_review",
            "--backbone=random:bert-tiny",
            f"--markdown={folder}/f/tasks.md",
        ],
    ]


@pytest.mark.parametrize("code", CODES, ids=lambda c: errno.errorcode[c])
def test_where_nothing_can_be_written(
    bank, tmp_path, capsys, monkeypatch, code
):
    folder = tmp_path / "out"
    folder.mkdir()
    commands = verbs_that_write(bank, folder)
    if code != CODES[0]:
        commands = commands[:2]  # what differs is the number
    for argv in commands:
        with monkeypatch.context() as patch:
            refuse(patch, folder, code)
            message = mistake(capsys, *argv)
        assert os.strerror(code) in message
        assert "run the same command again" in message
        assert list(folder.iterdir()) == []


def cached_tokens(folder: pathlib.Path) -> pathlib.Path:
    """A cache of its own that has the built-in tasks, for TensorFlow's sake."""
    tokens = pathlib.Path(os.environ["PANDA_CACHE_DIR"])
    folder.mkdir()
    for path in tokens.glob("toy_*.npz"):
        os.link(path, folder / path.name)
    return folder


def test_a_cache_that_cannot_be_written_costs_a_warning(
    bank, tiny, tmp_path, monkeypatch
):
    def scores(cached):
        return pj.score(
            sources=str(bank),
            targets=str(bank),
            metrics=("panda",),
            backbone=tiny,
            cached=cached,
        ).values["panda"]

    expected = scores(False)
    cache = cached_tokens(tmp_path / "cache")
    monkeypatch.setenv("PANDA_CACHE_DIR", str(cache))
    with monkeypatch.context() as patch:
        refuse(patch, tmp_path, errno.EROFS)
        with pytest.warns(RuntimeWarning, match="Nothing is kept in"):
            found = scores(True)
    np.testing.assert_array_equal(found, expected)
    assert not (tmp_path / "cache" / "vectors").exists()


def test_a_name_that_is_too_long(bank, tmp_path, capsys):
    out = tmp_path / ("x" * 300)
    message = mistake(
        capsys, "export", "peft", str(bank / "toy_review"), f"--out_dir={out}"
    )
    assert "name too long" in message.lower()


def test_a_name_that_is_no_text(tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9")
    message = mistake(capsys, "report", f"--runs={name}", "--out_dir=x")
    assert "expected UTF-8 text" in message


def test_files_are_as_open_as_the_umask_says(tmp_path):
    """Also where many threads write: it belongs to all of them."""
    before = os.umask(0o027)
    try:

        def write(number):
            files.write_text(tmp_path / f"{number}.txt", "x")
            place = tmp_path / f"{number}"
            with ownership.replacing(place, "import") as folder:
                tensors.save(folder / "x", {"a": np.ones(1)})

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(write, range(150)))
    finally:
        left = os.umask(before)
    assert left == 0o027
    modes = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.glob("*.txt")}
    modes |= {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.glob("*/x")}
    assert modes == {0o640}
    modes = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.glob("*[0-9]")}
    assert modes == {0o750}


def test_a_folder_that_is_exchanged_is_never_lost(tmp_path, monkeypatch):
    """Ctrl-C comes between the two renames of a disk without exchanges."""
    with ownership.replacing(tmp_path / "p", "import") as folder:
        (folder / "x").write_text("old")
    real, calls = os.replace, []

    def replace(*paths):
        if paths[1] == tmp_path / "p":
            calls.append(paths)
            if len(calls) == 1:
                raise KeyboardInterrupt
        real(*paths)

    monkeypatch.setattr(files, "_renameat2", lambda *_: False)
    monkeypatch.setattr(os, "replace", replace)
    with (
        pytest.raises(KeyboardInterrupt),
        ownership.replacing(tmp_path / "p", "import") as folder,
    ):
        (folder / "x").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    assert (tmp_path / "p" / "x").read_text() == "old"


# Names, and what is only read.


def test_every_verb_in_odd_places_leaves_what_it_reads_alone(
    tiny, tmp_path, capsys
):
    root = tmp_path / ODD
    made = made_up_data.write(root / "data")
    own = made_up_bank.write(root / "bank", tiny)
    rows = root / "rows.jsonl"
    rows.write_text('{"sentence": "It was late."}\n', encoding="utf-8")
    before = state(made, own)
    run = root / "run"
    train = [
        "train",
        "--task=cb",
        "--backbone=random:bert-tiny",
        "--method=pot",
        f"--source={own / 'toy_review'}",
        f"--data_dir={made}",
        f"--model_dir={run}",
        "--steps=2",
        "--max_length=16",
    ]
    out = root / "out"
    commands = [
        train,
        # Done already, by the settings that it left.
        ["train", f"--gin_file={run / 'config.gin'}", f"--model_dir={run}"],
        ["evaluate", f"--prompt={run}", f"--data_dir={made}"],
        [
            "score",
            f"--sources={own}",
            "--metrics=e_avg,panda",
            f"--out_dir={out / 'scores'}",
        ],
        ["rank", f"--sources={own}", "--target=toy_review"],
        ["report", f"--runs={root}", f"--out_dir={out / 'report'}"],
        ["export", "peft", str(own / "toy_review"), f"--out_dir={out / 'p'}"],
        ["import", "peft", str(out / "p"), f"--out_dir={out / 'q'}"],
        [
            "tasks",
            "cb",
            "--backbone=random:bert-tiny",
            f"--data_dir={made}",
            f"--markdown={out / 'tasks.md'}",
        ],
    ]
    for argv in commands:
        assert cli.main(argv) == 0, argv
    assert f"run folder: {run}" in capsys.readouterr().out
    assert state(made, own) == before
    assert prompt_folders.load_prompt(out / "q").info.task == "toy_review"
    assert json.loads((run / "result.json").read_text())["source"]
    assert (out / "scores" / "heatmap_panda.png").is_file()
    # The same again, of a folder whose names are formulas to Matplotlib.
    odd = root / "odd"
    for name in ("cost $5 and $x_{", r"\frac{", "a$b$"):
        made_up_bank.write(odd / "all", tiny)
        (odd / "all" / "toy_review").rename(odd / name)
    bank_of = pj.PromptBank(odd)
    found = pj.score(sources=bank_of, targets=bank_of, metrics=("e_avg",))
    found.write(out / "odd")
    found.clustermap(out / "odd" / "tree.png")


# Many at once.

_PROCESS = """
import concurrent.futures, sys
import panda_jax as pj

backbone = pj.load_backbone("random:bert-tiny")

def score(_):
    found = pj.score(
        sources=sys.argv[1],
        targets=sys.argv[1],
        metrics=("panda", "e_avg"),
        backbone=backbone,
    )
    return tuple(tuple(found.values[m].ravel().tolist()) for m in found.values)

with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = set(pool.map(score, range(30)))
assert len(found) == 1, found
print([list(values) for values in found.pop()])
"""


def test_two_hundred_scores_at_once_share_a_cache(
    bank, tiny, tmp_path, monkeypatch
):
    """140 in threads here and 30 in each of two other processes."""

    def score(cached=True):
        found = pj.score(
            sources=str(bank),
            targets=str(bank),
            metrics=("panda", "e_avg"),
            backbone=tiny,
            cached=cached,
        )
        return np.stack([found.values[m].ravel() for m in found.values])

    expected = score(cached=False)
    cache = cached_tokens(tmp_path / "cache")
    monkeypatch.setenv("PANDA_CACHE_DIR", str(cache))
    others = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(bank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        for found in pool.map(lambda _: score(), range(140)):
            np.testing.assert_array_equal(found, expected)
    for other in others:
        out, error = other.communicate(timeout=300)
        assert other.returncode == 0, error
        np.testing.assert_array_equal(json.loads(out), expected)
    # One file for each prompt, whole, and nothing else.
    left = [p for p in (cache / "vectors").rglob("*") if p.is_file()]
    assert len(left) == len(made_up_bank.TASKS)
    assert all(VectorCache().get(p.stem) is not None for p in left)
