"""Ctrl-C in every verb: one message, status 130, nothing half-written."""

import contextlib
import json
import pathlib
import signal
import subprocess
import sys

import made_up_bank
import made_up_runs
import numpy as np
import pytest

import panda_jax as pj
from panda_jax import cli
from panda_jax.cli import doctor
from panda_jax.errors import UserError
from panda_jax.io.claims import LOCK
from panda_jax.io.ownership import LISTING
from panda_jax.planning import plan

SMALL = [
    "--prompt_length=4",
    "--max_length=16",
    "--batch_size=8",
    "--eval_examples=16",
]
TRAIN = [
    "train",
    "--task=toy_review",
    "--backbone=random:bert-tiny",
    "--train_examples=16",
    "--epochs=2",
    *SMALL,
]
# What a file or folder is touched by, as Python tells its hooks.
_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove")


class _Hook:
    """Ctrl-C when the n-th file below a folder is touched."""

    def __init__(self) -> None:
        self.folder, self.left = "", 0
        sys.addaudithook(self)

    def __call__(self, event: str, given: tuple) -> None:
        if not self.left or event not in _EVENTS:
            return
        if str(given[0]).startswith(self.folder):
            self.left -= 1
            if not self.left:
                signal.raise_signal(signal.SIGINT)


FEWER_FILES = ("evaluate", "evaluate-ranking", "predict", "tasks")
_HOOKS: list[_Hook] = []


@contextlib.contextmanager
def ctrl_c(folder: pathlib.Path, number: int):
    """Interrupts this process; hooks are never taken away, so one is enough."""
    if not _HOOKS:
        _HOOKS.append(_Hook())
    hook = _HOOKS[0]
    hook.folder, hook.left = str(folder), number
    try:
        yield hook
    finally:
        hook.left = 0


@pytest.fixture(autouse=True)
def _sigint_is_heard():
    """Also by tests in the background of a shell, which has it ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.fixture(scope="module")
def bank(tiny, tmp_path_factory) -> pathlib.Path:
    return made_up_bank.write(tmp_path_factory.mktemp("banks") / "bank", tiny)


def commands(bank: pathlib.Path, root: pathlib.Path) -> dict[str, list[str]]:
    """Each verb's arguments; what it reads or writes first is below `root`."""
    (root / "rows.jsonl").write_text('{"sentence": "It was late."}\n')
    np.save(root / "mrpc.npy", np.ones((4, 8), np.float32))
    made_up_runs.write_run(root / "runs", "a", value=0.5)
    (root / "truth.csv").write_text("source,target,score\na,b,0.5\n")
    (root / "scores.csv").write_text("source,target,metric,score\na,b,on,1\n")
    prompt, out = bank / "toy_review", root / "out"
    return {
        "demo": [
            f"--out_dir={out}",
            "--backbone=random:bert-tiny",
            "--sources=toy_sentiment,toy_topic",
            "--source_examples=16",
            "--source_epochs=1",
            *SMALL,
        ],
        "train": [*TRAIN[1:], f"--model_dir={out}"],
        "evaluate": [f"--prompt={prompt}", "--eval_examples=16"],
        "predict": [
            f"--prompt={prompt}",
            f"--input={root / 'rows.jsonl'}",
            f"--out_dir={out}",
        ],
        "score": [
            f"--sources={bank}",
            "--metrics=e_avg",
            f"--out_dir={out}",
        ],
        "rank": [f"--sources={bank}", "--target=toy_review", "--metric=e_avg"],
        "evaluate-ranking": [
            f"--scores={root / 'scores.csv'}",
            f"--truth={root / 'truth.csv'}",
        ],
        "import": ["npy", str(root / "mrpc.npy"), f"--out_dir={out}"],
        "export": ["peft", str(prompt), f"--out_dir={out}"],
        "tasks": [
            "toy_review",
            "--backbone=random:bert-tiny",
            f"--markdown={out / 'tasks.md'}",
        ],
        "plan": ["--topology=cpu:8", "--backbone=random:bert-tiny"],
        "grid": [
            f"--out_dir={out}",
            "--backbones=random:bert-tiny",
            "--targets=toy_review",
            "--methods=prompt",
            '--settings={"prompt_length": 4, "max_length": 16, "epochs": 1, '
            '"train_examples": 16, "eval_examples": 16}',
        ],
        "report": [f"--runs={root / 'runs'}", f"--out_dir={out}"],
        "doctor": [],
    }


def interrupted(capsys, argv: list[str]) -> str:
    """The one line that a verb says."""
    capsys.readouterr()
    assert cli.main(argv) == 130
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [x for x in error.splitlines() if x.startswith("panda-jax:")]
    assert line.startswith("panda-jax: interrupted; ")
    return line


def check_whole(folder: pathlib.Path) -> None:
    """Nothing is there by half: no file on its way, none that is cut."""
    for path in folder.rglob("*"):
        kept = path.name in (LISTING, LOCK)
        assert kept or not path.name.startswith("."), path
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.name == "panda.json":
            pj.load_prompt(path.parent)


def test_the_verbs_are_all_here(bank, tmp_path):
    assert set(commands(bank, tmp_path)) == set(cli.VERBS)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_ctrl_c(verb, number, bank, tmp_path, capsys, monkeypatch):
    argv = [verb, *commands(bank, tmp_path)[verb]]

    def asked(*unused, **options):
        signal.raise_signal(signal.SIGINT)

    if verb in ("plan", "doctor"):  # what they do first takes seconds
        if number > 1:
            return
        monkeypatch.setattr(plan, "plan", asked)
        monkeypatch.setattr(doctor, "diagnose", asked)
    where = bank if verb in ("evaluate", "rank") else tmp_path
    with ctrl_c(where, number) as hook:
        if number == 5 and verb in FEWER_FILES:
            return
        line = interrupted(capsys, argv)
        assert not hook.left or verb in ("plan", "doctor")
    goes_on = verb in ("demo", "train", "grid")
    assert ("goes on from the last checkpoint" in line) == goes_on
    check_whole(tmp_path)
    if number == 1:
        out = tmp_path / "out"
        assert not out.exists() or not any(out.rglob("*.*"))


def test_a_run_that_was_interrupted_goes_on(tmp_path, capsys):
    """Ctrl-C as a terminal sends it, in the midst of training."""
    flags = [*TRAIN, f"--model_dir={tmp_path}", "--epochs=400"]
    command = [sys.executable, "-m", "panda_jax", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "epoch 20/" in line:
            process.send_signal(signal.SIGINT)
            break
    said += process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "the same command goes on from the last checkpoint" in said
    check_whole(tmp_path / "prompt")
    assert not (tmp_path / "result.json").exists()
    # With other settings it is another run, which the folder tells.
    assert cli.main([*TRAIN, f"--model_dir={tmp_path}"]) == 2
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "late"), [(130, ""), (143, ""), (2, "late")]
)
def test_a_command_that_a_signal_ended_leaves_at_once(status, late):
    """Python's own end may abort in other threads."""
    code = (
        "import atexit; from panda_jax.cli import entry\n"
        "atexit.register(print, 'late')\n"
        f"entry.main = lambda: {status}\n"
        "print('said')\n"
        "entry.program()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == status
    assert done.stdout.split() == ["said", *late.split()]


def test_nothing_is_in_the_way_of_a_second_try(tmp_path, capsys):
    argv = [*TRAIN, f"--model_dir={tmp_path / 'run'}", "--epochs=1"]
    with ctrl_c(tmp_path, 12):
        interrupted(capsys, argv)
    assert not (tmp_path / "run" / "result.json").exists()
    assert cli.main(argv) == 0
    with pytest.raises(UserError, match="another run"):
        pj.train(
            "random:bert-tiny",
            task="toy_review",
            seed=1,
            model_dir=tmp_path / "run",
        )
