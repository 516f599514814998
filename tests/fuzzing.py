"""Fuzzes every reader of files: what is wrong is refused, and nothing else.

    python tests/fuzzing.py --inputs=10000 --seed=0 [--readers=npy,peft]

Each input is a valid file or folder, made by the project's own writers, with
one to three changes. A reader may take it or raise `UserError`. It may not
raise anything else, compute for longer than `SECONDS`, open a file outside the
folder, follow a name or link that leads out, or take more memory than four
times the files' size and a floor: `TRACED` for what Python and NumPy allocate,
used or not, and `RESIDENT` for all memory of the process that was used. (The
floors are for parsers: Python takes up to seventy bytes for one of
`[[],[],...]`, and no input is larger than 64 KiB; imports are made before
anything is measured.)

Prints a JSON summary: for each reader how many inputs, how many were taken and
refused, and the failures, each with the number of the first input that made it.
The same seed makes the same inputs: `--readers=npy --only=123` repeats one.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import fuzzing_changes as changes
from fuzzing_readers import READERS, Reader

from panda_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 5.0
# Times as long may pass where other processes have the cores.
STARVED = 12
TIMES = 4
TRACED, RESIDENT = 8 << 20, 96 << 20
Files = dict[str, bytes]


@dataclasses.dataclass
class Summary:
    """What became of a reader's inputs.

    Attributes:
      inputs: how many there were.
      accepted: how many were taken.
      refused: how many raised `UserError`.
      longest: the longest message.
      slowest: seconds that the slowest computed for.
      seconds: of all, with what makes them.
      failures: what else happened -> the input that made it first, and how
        many did.
    """

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    longest: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    failures: dict[str, dict[str, Any]] = dataclasses.field(
        default_factory=dict
    )

    def fail(self, what: str, number: int, told: str = "") -> None:
        """Notes a failure; the first of a kind with what it told."""
        known = self.failures.setdefault(
            what, {"input": number, "count": 0, "told": told[-2000:]}
        )
        known["count"] += 1


class TooSlow(BaseException):
    """Out of the alarm; no reader catches it."""


class Outside(BaseException):
    """A file was opened where none may be."""


class Sandbox:
    """A folder in which an input is made of a seed and unmade again.

    Args:
      root: an empty folder.
      reader: writes the seeds.
    """

    def __init__(self, root: pathlib.Path, reader: Reader) -> None:
        self.reader = reader
        self.inside = root / "inside"
        self.outside = root / "outside"
        for place in (self.inside, self.outside):
            place.mkdir(parents=True)
            reader.write(place)
        self.seeds = {
            folder.name: {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            for folder in sorted(self.inside.iterdir())
        }
        self.known = {
            seed: [
                (name, kinds)
                for name in files
                for pattern, kinds in reader.changes.items()
                if pathlib.PurePosixPath(name).match(pattern)
            ]
            for seed, files in self.seeds.items()
        }

    @contextlib.contextmanager
    def changed(
        self, rng: random.Random
    ) -> Iterator[tuple[pathlib.Path, str, int, bool]]:
        """Yields an input: folder, seed, size, and whether it leads out."""
        seed = rng.choice(sorted(self.seeds))
        folder, whole = self.inside / seed, self.seeds[seed]
        files, link = self._change(rng, seed)
        try:
            for name in whole.keys() - files.keys():
                (folder / name).unlink()
            for name, data in files.items():
                if whole.get(name) != data:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(data)
            if link is not None:
                (folder / link).unlink()
                (folder / link).symlink_to(self.outside / seed / link)
            size = sum(map(len, files.values()))
            yield folder, seed, size, link is not None or files.climbs
        finally:
            if link is not None:
                (folder / link).unlink()
            for place, _, names in os.walk(folder):
                for name in names:
                    path = os.path.join(place, name)
                    if os.path.relpath(path, folder) not in whole:
                        os.unlink(path)
            for name, data in whole.items():
                if link == name or files.get(name) != data:
                    (folder / name).write_bytes(data)

    def _change(
        self, rng: random.Random, seed: str
    ) -> tuple["Climbing", str | None]:
        """The input's files, and which is a link out of the folder."""
        files = Climbing(self.seeds[seed])
        known = self.known[seed]
        if self.reader.guarded and rng.random() < 0.03:
            return files, rng.choice(known)[0]
        if self.reader.climb is not None and rng.random() < 0.05:
            files.climbs = self.reader.climb(rng, files)
            return files, None
        for _ in range(rng.choice((1, 1, 1, 2))):
            name, kinds = rng.choice(known)
            if name not in files:
                continue
            if len(known) > 1 and rng.random() < 0.02:
                del files[name]
                continue
            files[name] = changes.change(rng, files[name], *kinds)
        return files, None


class Climbing(Files):
    """Files of an input; `climbs` where one names what lies outside."""

    climbs = False


class Watch:
    """Looks at memory and at the files that are opened.

    Attributes:
      folder: outside of which nothing may be opened; None allows all.
    """

    def __init__(self) -> None:
        self.folder: pathlib.Path | None = None
        self.allowed = tuple(
            os.path.realpath(place) + os.sep
            for place in (sys.prefix, sys.base_prefix, ROOT, "/proc", "/sys")
        ) + ("/dev/null", "/usr/lib", "/usr/share")
        sys.addaudithook(self._opened)

    def _opened(self, event: str, given: tuple[Any, ...]) -> None:
        if event != "open" or self.folder is None:
            return
        if not isinstance(given[0], str | bytes):
            return
        place, self.folder = self.folder, None
        try:
            path = os.path.realpath(os.fsdecode(given[0]))
        except (OSError, ValueError):
            path = ""
        if path and not path.startswith((f"{place}{os.sep}", *self.allowed)):
            raise Outside(path)
        self.folder = place

    @staticmethod
    def resident() -> tuple[int, int]:
        """The most memory that was in use, and what is now, in bytes."""
        try:
            with open("/proc/self/status", "rb") as status:
                found = dict(line.split(b":") for line in status)
            most, now = (
                int(found[name].split()[0]) << 10
                for name in (b"VmHWM", b"VmRSS")
            )
            if most - now > RESIDENT // 4:
                # Or what comes could hide below what was.
                with open("/proc/self/clear_refs", "wb") as clear:
                    clear.write(b"5")
        except (OSError, KeyError):  # no Linux, or not allowed
            return 0, 0
        return most, now


_WATCH: list[Watch] = []


def watch() -> Watch:
    """The one of this process: hooks are never taken away."""
    if not _WATCH:
        _WATCH.append(Watch())
    return _WATCH[0]


def fuzz(
    reader: Reader,
    inputs: int,
    *,
    seed: int,
    root: pathlib.Path,
    begin: int = 0,
    note: Any = None,
) -> Summary:
    """Gives a reader its inputs from number `begin` to number `inputs`.

    Args:
      reader: which.
      inputs: how many.
      seed: of them.
      root: an empty folder.
      begin: the first.
      note: called with the number of each before it is read, and the summary.
    """
    sandbox = Sandbox(root, reader)
    summary, looks = Summary(), watch()
    former = signal.signal(signal.SIGALRM, _late)
    traced = tracemalloc.is_tracing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in sandbox.seeds:
            # Also imports what is imported late.
            reader.read(sandbox.inside / name, name)
        tracemalloc.start(1)
        began = time.monotonic()
        try:
            for number in range(begin, inputs):
                if note is not None:
                    note(number, summary)
                rng = random.Random(f"{seed}/{reader.name}/{number}")
                with sandbox.changed(rng) as (folder, name, size, climbs):
                    summary.inputs += 1
                    limit = TIMES * size
                    _one(reader, folder, name, summary, number, climbs, limit)
                summary.seconds = round(time.monotonic() - began, 3)
        finally:
            looks.folder = None
            signal.signal(signal.SIGALRM, former)
            if not traced:
                tracemalloc.stop()
    return summary


def _late(*unused: object) -> None:
    """Ends what had its time on a core, or waits for something else.

    A busy machine gives this process few of its seconds.
    """
    now, since = _clocks(), _BEGAN[0]
    if now[0] - since[0] < SECONDS and now[1] - since[1] < STARVED * SECONDS:
        signal.setitimer(signal.ITIMER_REAL, SECONDS / 2)
        return
    raise TooSlow


def _clocks() -> tuple[float, float]:
    """Seconds that this process was computing, and that went by."""
    return time.process_time(), time.monotonic()


_BEGAN = [(0.0, 0.0)]


def _one(
    reader: Reader,
    folder: pathlib.Path,
    name: str,
    summary: Summary,
    number: int,
    climbs: bool,
    limit: int,
) -> None:
    """Gives a reader one input and looks at what it does."""
    looks = watch()
    tracemalloc.reset_peak()
    _, resident = looks.resident()
    traced, _ = tracemalloc.get_traced_memory()
    _BEGAN[0] = _clocks()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        looks.folder = folder.resolve()
        try:
            reader.read(folder, name)
        finally:
            looks.folder = None
            signal.setitimer(signal.ITIMER_REAL, 0)
        summary.accepted += 1
        if climbs:
            summary.fail("a name or link that leads out was followed", number)
    except UserError as error:
        summary.refused += 1
        summary.longest = max(summary.longest, len(str(error)))
        if not str(error).strip():
            summary.fail("an error without words", number)
    except TooSlow:
        summary.fail(f"longer than {SECONDS:g} s", number, _trace())
    except Outside as error:
        summary.fail(f"opened {error}", number, _trace())
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a panic of Rust's is no Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{pathlib.Path(where.filename).name}:{where.name}"
        told = f"{type(error).__name__} in {place}"
        summary.fail(told, number, _trace())
    summary.slowest = max(summary.slowest, _clocks()[0] - _BEGAN[0][0])
    _, peak = tracemalloc.get_traced_memory()
    if peak - traced > limit + reader.traced:
        summary.fail("allocated too much", number, f"{peak - traced} bytes")
    grown = looks.resident()[0] - resident
    if grown > limit + RESIDENT:
        summary.fail("took too much memory", number, f"{grown} bytes")


def _trace() -> str:
    with contextlib.suppress(RecursionError):
        return traceback.format_exc(limit=-8)
    return "RecursionError"


def _place() -> str | None:
    """Where files are made and unmade fast, if there is such a place."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def child(reader: str, inputs: int, seed: int, begin: int, state: str) -> None:
    """Fuzzes in this process, and writes to a file how far it is."""
    file = os.open(state, os.O_WRONLY | os.O_CREAT)

    def note(number: int, summary: Summary) -> None:
        text = json.dumps([number, dataclasses.asdict(summary)])
        os.pwrite(file, text.encode() + b"\n", 0)

    with tempfile.TemporaryDirectory(dir=_place()) as root:
        place = pathlib.Path(root).resolve()
        summary = fuzz(
            READERS[reader],
            inputs,
            seed=seed,
            root=place / "box",
            begin=begin,
            note=note,
        )
    note(inputs, summary)


def parent(reader: str, inputs: int, seed: int) -> Summary:
    """Has a process fuzz; begins another one behind what ends the first."""
    total, begin = Summary(), 0
    while begin < inputs:
        with tempfile.TemporaryDirectory(dir=_place()) as root:
            state = pathlib.Path(root, "state")
            flags = [f"--inputs={inputs}", f"--seed={seed}"]
            flags += [f"--child={state}", f"--readers={reader}"]
            process = subprocess.Popen(
                [sys.executable, __file__, *flags, f"--begin={begin}"],
                stderr=subprocess.PIPE,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
            ended = _wait(process, state)
            number, found = _state(state, begin)
            _add(total, found)
            if number < inputs:
                assert process.stderr is not None
                told = process.stderr.read().decode(errors="replace")
                total.inputs += 1
                total.fail(ended, number, told)
                number += 1
            begin = number
    return total


def _wait(process: subprocess.Popen[bytes], state: pathlib.Path) -> str:
    """How a process ended; one that stands still is ended."""
    last, since = b"", time.monotonic()
    most = 1.5 * STARVED * SECONDS
    while process.poll() is None:
        time.sleep(0.2)
        now = state.read_bytes() if state.exists() else b""
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > (most if now else 600):
            process.kill()
            process.wait()
            return "hung where no alarm is heard"
    return f"ended the process ({process.returncode})"


def _state(state: pathlib.Path, begin: int) -> tuple[int, Summary]:
    if not state.exists():
        return begin, Summary()
    text = state.read_text().split("\n")[0]
    number, found = json.loads(text)
    return number, Summary(**found)


def _add(total: Summary, found: Summary) -> None:
    total.inputs += found.inputs
    total.accepted += found.accepted
    total.refused += found.refused
    total.longest = max(total.longest, found.longest)
    total.seconds += found.seconds
    total.slowest = max(total.slowest, found.slowest)
    for what, each in found.failures.items():
        known = total.failures.setdefault(what, {**each, "count": 0})
        known["count"] += each["count"]


def main() -> None:
    """Fuzzes the readers one after another; exits 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--only", type=int, help="one input, in this process")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--begin", type=int, default=0, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        child(flags.readers, flags.inputs, flags.seed, flags.begin, flags.child)
        return
    found: Mapping[str, Any] = {}
    for name in flags.readers.split(","):
        if flags.only is not None:
            with tempfile.TemporaryDirectory() as root:
                summary = fuzz(
                    READERS[name],
                    flags.only + 1,
                    seed=flags.seed,
                    root=pathlib.Path(root).resolve() / "box",
                    begin=flags.only,
                )
        else:
            summary = parent(name, flags.inputs, flags.seed)
        found = {**found, name: dataclasses.asdict(summary)}
        print(f"{name}: {summary.inputs}", file=sys.stderr, flush=True)
    print(json.dumps(found, indent=2))
    sys.exit(any(summary["failures"] for summary in found.values()))


if __name__ == "__main__":
    main()
