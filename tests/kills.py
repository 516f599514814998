"""SIGKILL at random moments, and two processes on one folder.

`python tests/kills.py --moments=200 --pairs=20 --seed=0 --out=F.json` kills
each verb that writes at random moments: half of them by the clock, half as the
n-th file is touched. After each kill every folder must be readable, what a user
keeps there must be untouched, and in the end the files are, bit for bit, those
of a command that nobody killed.

Commands run in forks of one process that has imported everything and begun no
thread: a start of Python with JAX would take most of the time.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import made_up_bank
import made_up_runs
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
SMALL = {
    "prompt_length": 4,
    "max_length": 16,
    "batch_size": 8,
    "train_examples": 40,
    "eval_examples": 16,
}
FLAGS = [f"--{name}={value}" for name, value in SMALL.items()]
# In a row, before a command may come to its end.
MOST_IN_A_ROW = 3
NOTES = "mine.md"
# Times, places, and which lanes were trained last.
UNLIKE = ("progress.json", ".panda_jax.json", "config.gin", "fleet.json")


class Commands:
    """Runs commands in forks; a context manager."""

    def __enter__(self) -> "Commands":
        self._parent = subprocess.Popen(
            [sys.executable, str(HERE / "kills.py"), "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._parent.stdout is not None
        assert self._parent.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *unused: object) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(60)

    def start(
        self, argv: list[str], output: pathlib.Path, **touches: Any
    ) -> "Command":
        """Begins a command; `below` and `at`: killed at that file event."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        output.write_text("")
        line = {"argv": argv, "output": str(output), **touches}
        self._parent.stdin.write(json.dumps(line) + "\n")
        self._parent.stdin.flush()
        return Command(int(self._parent.stdout.readline()), output)


class Command:
    """A command that runs: its process and what it prints."""

    def __init__(self, pid: int, output: pathlib.Path) -> None:
        self.pid, self.output = pid, output
        # A number may be another process's a moment later, a handle never is.
        self._handle: int | None = None
        with contextlib.suppress(ProcessLookupError):
            self._handle = os.pidfd_open(pid)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        if (
            self._handle is not None
            and select.select([self._handle], [], [], 0)[0]
        ):
            os.close(self._handle)
            self._handle = None
        return self._handle is not None

    def kill(self) -> None:
        """Ends it without a chance to say anything."""
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def wait(self, seconds: float = 1800.0) -> int | None:
        """Its status, or None where it was killed."""
        end = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"hangs:\n{self.output.read_text()}")
            time.sleep(0.005)
        last = self.output.read_text().splitlines()[-1:]
        said = last[0] if last else ""
        return int(said[7:]) if said.startswith("status ") else None

    def done(self) -> None:
        """Waits for its good end."""
        status = self.wait()
        assert status == 0, f"{status}:\n{self.output.read_text()}"

    @property
    def events(self) -> int:
        """How many file events it saw."""
        for line in self.output.read_text().splitlines():
            if line.startswith("events "):
                return int(line[7:])
        return 0


def serve() -> None:
    """Forks a process for every line of standard input."""
    # What takes long to import, and starts no thread yet.
    from panda_jax.api import training  # noqa: F401
    from panda_jax.experiments.grid import runner  # noqa: F401
    from panda_jax.experiments.report import report  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        os._exit(_run(asked))


def _run(asked: dict[str, Any]) -> int:
    """A command, in a process of its own; its status."""
    from panda_jax import cli

    file = os.open(asked["output"], os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    seen, below = 0, asked.get("below", "/dev/null")

    def hook(event: str, given: tuple) -> None:
        nonlocal seen
        if event not in ("open", "os.mkdir", "os.rename", "os.remove"):
            return
        if given and str(given[0]).startswith(below):
            seen += 1
            if seen == asked.get("at"):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        status = cli.main(asked["argv"])
    except BaseException:
        traceback.print_exc()
        status = 1
    print(f"events {seen}\nstatus {status}", flush=True)
    return status


class Case:
    """A command, what it finds, and what has to hold.

    Attributes:
      name: of the verb.
      argv: of the command, for a folder that it writes to.
      before: makes what is there when it begins.
      whole: holds what is there at any moment.
      left: what it leaves, to be compared.
    """

    def __init__(
        self,
        name: str,
        argv: Callable[[pathlib.Path], list[str]],
        *,
        before: Callable[[pathlib.Path], None] = lambda out: None,
        whole: Callable[[pathlib.Path], None] = lambda out: None,
        other: Callable[[pathlib.Path], list[str]] | None = None,
    ) -> None:
        self.name, self.argv = name, argv
        self.before, self.whole, self.other = before, whole, other


def left(out: pathlib.Path) -> dict[str, Any]:
    """What a command left, without what no two runs share."""
    from panda_jax.io.writers import read_metrics

    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if not path.is_file() or path.name.startswith("events."):
            continue
        top = name.split("/")[0]
        # Who made which fleet, and in how many starts, is by chance.
        if top in ("claims", "ended", "log") or "checkpoints/" in name:
            continue
        if path.name in UNLIKE:
            continue
        if path.name == "result.json":
            value = json.loads(path.read_text())
            value.pop("seconds")
            found[name] = value
        elif path.name == "metrics.jsonl":
            found[name] = [
                {k: x for k, x in line.items() if k != "examples_per_second"}
                for line in read_metrics(path)
            ]
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def check_run(out: pathlib.Path) -> None:
    """A run's folder is readable, and all in it is of one run."""
    from panda_jax.store.backbones import load_backbone
    from panda_jax.store.prompt_folders import load_prompt

    for mark in [*out.rglob("run.json"), *out.rglob("result.json")]:
        if any(part.startswith(".") for part in mark.relative_to(out).parts):
            continue
        about = json.loads((mark.parent / "run.json").read_text())
        value = json.loads(mark.read_text())
        assert value["run_id"] == about["run_id"], mark
    for found in out.rglob("panda.json"):
        if any(part.startswith(".") for part in found.relative_to(out).parts):
            continue
        stored = load_prompt(found.parent)
        run = found.parent.parent / "run.json"
        if run.exists():
            settings = json.loads(run.read_text())["settings"]
            assert stored.info.task == settings["task"]
            assert stored.info.seed == settings["seed"]
        model = found.parent.parent / "model"
        if stored.info.method == "finetune" and model.exists():
            loaded = load_backbone(str(model)).fingerprint
            assert loaded == stored.info.fingerprint, "two of different times"
    for listing in out.rglob(".panda_jax.json"):
        from panda_jax.io.ownership import Listing

        assert Listing.read(listing.parent) is not None, listing


def check_one_of(*choices: dict[str, Any]) -> Callable[[pathlib.Path], None]:
    """A folder is one of these as a whole."""

    def check(out: pathlib.Path) -> None:
        found = left(out) if out.exists() else {}
        found.pop(NOTES, None)
        hidden = [n for n in found if n.startswith(".")]
        for name in hidden:
            del found[name]
        assert found in choices, sorted(found)

    return check


def check_files_of(
    *choices: dict[str, Any],
) -> Callable[[pathlib.Path], None]:
    """Each file of a folder is that of one of these."""

    def check(out: pathlib.Path) -> None:
        for name, value in left(out).items():
            if name != NOTES and not name.startswith("."):
                assert value in [each.get(name) for each in choices], name

    return check


def prepare(root: pathlib.Path) -> None:
    """What the commands read."""
    from panda_jax.store.backbones import load_backbone

    tiny = load_backbone("random:bert-tiny")
    made_up_bank.write(root / "bank", tiny)
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        np.save(
            root / f"cb{seed}.npy", rng.normal(size=(4, 128)).astype(np.float32)
        )
    for number in (1, 2):
        runs = root / f"runs{number}"
        for seed in range(3):
            for method, source in (("prompt", None), ("pot", "mnli")):
                made_up_runs.write_run(
                    runs,
                    f"{method}-{seed}",
                    value=round(0.4 + 0.1 * seed + 0.05 * number, 3),
                    task="cb" if number == 1 else "rte",
                    method=method,
                    source=source,
                    seed=seed,
                    run_id=f"{method}-{seed}-{number}",
                )


def cases(root: pathlib.Path, commands: Commands) -> list[Case]:
    """All verbs, with what they read below `root`."""
    prepare(root)

    def train(method: str, seed: int = 0, epochs: int = 6):
        return lambda out: [
            "train",
            "--task=toy_review",
            "--backbone=random:bert-tiny",
            f"--method={method}",
            f"--seed={seed}",
            f"--epochs={epochs}",
            # What tunes the model has no prompt.
            *(f for f in FLAGS if method != "finetune" or "prompt" not in f),
            f"--model_dir={out}",
        ]

    def bring(seed: int):
        return lambda out: [
            "import",
            "npy",
            str(root / f"cb{seed}.npy"),
            "--task=cb",
            f"--out_dir={out}",
        ]

    def give(name: str):
        return lambda out: [
            "export",
            "peft",
            str(root / "bank" / name),
            f"--out_dir={out}",
        ]

    def tell(number: int):
        return lambda out: [
            "report",
            f"--runs={root / f'runs{number}'}",
            "--resamples=20",
            f"--out_dir={out}",
        ]

    def grid(out: pathlib.Path) -> list[str]:
        return [
            "grid",
            f"--out_dir={out}",
            "--backbones=random:bert-tiny",
            "--sources=toy_sentiment",
            "--targets=toy_review",
            "--methods=prompt,pot",
            f"--settings={json.dumps({**SMALL, 'epochs': 4})}",
        ]

    def after(argv: Callable[[pathlib.Path], list[str]]):
        def before(out: pathlib.Path) -> None:
            commands.start(argv(out), root / "before.txt").done()

        return before

    def made(argv: Callable[[pathlib.Path], list[str]]) -> dict[str, Any]:
        place = pathlib.Path(tempfile.mkdtemp(dir=root)) / "x"
        after(argv)(place)
        return left(place)

    return [
        Case(
            "train", train("prompt"), whole=check_run, other=train("prompt", 1)
        ),
        Case(
            "train --method=finetune",
            train("finetune", epochs=4),
            whole=check_run,
            other=train("prompt"),
        ),
        Case(
            "import",
            bring(2),
            before=after(bring(1)),
            whole=check_one_of(made(bring(1)), made(bring(2))),
        ),
        Case(
            "export",
            give("toy_review"),
            before=after(give("toy_sentiment")),
            whole=check_one_of(
                made(give("toy_sentiment")), made(give("toy_review"))
            ),
        ),
        Case(
            "report",
            tell(2),
            before=after(tell(1)),
            whole=check_files_of(made(tell(1)), made(tell(2))),
        ),
        Case("grid", grid, whole=check_run),
    ]


def kill(
    case: Case,
    commands: Commands,
    root: pathlib.Path,
    moments: int,
    chance: random.Random,
) -> dict[str, Any]:
    """Kills a case's command at so many moments."""
    name = case.name.replace(" ", "")
    output = root / f"{name}.txt"
    places = iter(range(10**6))

    def place() -> pathlib.Path:
        out = root / f"{name}-{next(places)}" / "out"
        case.before(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / NOTES).write_text("a user's\n")
        return out

    out = place()
    first = commands.start(case.argv(out), output, below=str(out), at=-1)
    began = time.monotonic()
    first.done()
    seconds, events = time.monotonic() - began, first.events
    expected = left(out)
    count: collections.Counter[str] = collections.Counter()
    while count["moments"] < moments:
        shutil.rmtree(out.parent)
        out = place()
        for _ in range(chance.randint(1, MOST_IN_A_ROW)):
            by_file = chance.random() < 0.5
            touches = {"below": str(out)}
            if by_file:
                touches["at"] = chance.randint(1, events)
            command = commands.start(case.argv(out), output, **touches)
            if not by_file:
                end = time.monotonic() + chance.uniform(0.0, seconds)
                while command.alive and time.monotonic() < end:
                    time.sleep(0.005)
                command.kill()
            status = command.wait()
            assert status in (None, 0), output.read_text()
            if status == 0:
                break
            count["moments"] += 1
            count["by file" if by_file else "by clock"] += 1
            case.whole(out)
            assert (out / NOTES).read_text() == "a user's\n"
            if count["moments"] >= moments:
                break
        if case.other and (out / "run.json").exists() and chance.random() < 0.3:
            other = commands.start(case.other(out), output)
            assert other.wait() == 2, output.read_text()
            assert "holds another run" in output.read_text()
            count["other runs refused"] += 1
        again = commands.start(case.argv(out), output)
        again.done()
        count["goes on from a checkpoint"] += (
            "resumed at step" in output.read_text()
        )
        found = left(out)
        assert found == expected, _differs(found, expected)
        case.whole(out)
        hidden = [
            path.relative_to(out.parent).as_posix()
            for path in out.parent.rglob(".*")
            if path.name != ".panda_jax.json"
        ]
        assert not hidden, hidden
        count["ends"] += 1
    return {
        "verb": case.name,
        "seconds uninterrupted": round(seconds, 2),
        "file events": events,
        **count,
    }


def _differs(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(n for n in {**one, **other} if one.get(n) != other.get(n))


def pairs(
    case: Case,
    commands: Commands,
    root: pathlib.Path,
    number: int,
    chance: random.Random,
) -> dict[str, Any]:
    """Two processes on one folder: one trains, one says who holds it."""
    expected: dict[str, Any] = {}
    for turn in range(number):
        out = root / f"pair-{turn}"
        both = []
        for each in range(2):
            both.append(
                commands.start(case.argv(out), root / f"pair{each}.txt")
            )
            time.sleep(chance.uniform(0.0, 0.3))
        said = {
            command.wait(): (command, command.output.read_text())
            for command in both
        }
        assert set(said) == {0, 2}, said
        holder, words = said[0][0].pid, said[2][1]
        assert f"is held by process {holder} on " in words, words
        assert "at work since 2" in words
        expected = expected or left(out)
        assert left(out) == expected
        check_run(out)
        shutil.rmtree(out)
    return {"pairs": number, "one trained and one said who": number}


def run(
    root: pathlib.Path,
    *,
    moments: int,
    number: int,
    seed: int,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything, or some verbs; `moments` in all, shared out evenly."""
    chance = random.Random(seed)
    found = []
    with Commands() as commands:
        all_cases = cases(root, commands)
        some = [c for c in all_cases if not only or c.name in only]
        each = -(-moments // len(some))
        for case in some:
            found.append(kill(case, commands, root, each, chance))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        together = pairs(all_cases[0], commands, root, number, chance)
    return {"seed": seed, "kills": found, "together": together}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--only", default="", help="verbs, with commas")
    parser.add_argument("--serve", action="store_true", help="for itself")
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        os.environ.setdefault("PANDA_CACHE_DIR", str(root / "cache"))
        found = run(
            root,
            moments=args.moments,
            number=args.pairs,
            seed=args.seed,
            only=tuple(filter(None, args.only.split(","))),
        )
    found["seconds"] = round(time.monotonic() - began)
    found["command"] = (
        f"python tests/kills.py --moments={args.moments} "
        f"--pairs={args.pairs} --seed={args.seed} --only={args.only}"
    )
    text = json.dumps(found, indent=2) + "\n"
    if args.out:
        args.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
