"""Ours and a peer in turn: processes of their own, medians, one JSON file.

What a script here asks is asked of `Way`s: each is made in a process of its
own, which stays, so that no way's threads or memory are in another's way. Their
outputs are compared before anything is timed. Then each is told in turn to run
for a while, the order reversed every other time; what counts are ratios within
a turn, for machines get faster and slower in the meantime. A way may be one of
another build of the package (`Build`), which is run by a Python of its own.
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

PACKAGES = (
    "panda-jax",
    "jax",
    "flax",
    "optax",
    "numpy",
    "torch",
    "transformers",
    "peft",
)


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to do the work.

    Attributes:
      run: does it so many times, and returns when it is done; its seconds (a
        float) where not all of the time that it takes counts.
      outputs: name -> what must be alike whatever the way.
      facts: what else is known of it, for the JSON (FLOPs, bytes).
      works: name -> other work that it can be told to do, as `run`.
    """

    run: Callable[[int], Any]
    outputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    works: Mapping[str, Callable[[int], Any]] = dataclasses.field(
        default_factory=dict
    )


Maker = Callable[..., Way]


@dataclasses.dataclass(frozen=True)
class Build:
    """Another build of the package.

    Attributes:
      python: the program that runs it.
      checkout: the folder that it is imported from.
    """

    python: str
    checkout: pathlib.Path

    @classmethod
    def of(cls, text: str) -> "Build":
        """Of a flag's PYTHON:CHECKOUT."""
        python, _, folder = text.rpartition(":")
        checkout = pathlib.Path(folder).resolve()
        found = (checkout / "panda_jax" / "__init__.py").is_file()
        if not (python and folder and found):
            raise SystemExit(
                f"{text!r} is not PYTHON:CHECKOUT with a panda_jax in CHECKOUT."
            )
        return cls(python, checkout)

    def commit(self) -> str | None:
        """Of the checkout, where git knows it."""
        return commit(self.checkout)

    def started(self, maker: Maker, theirs: Connection) -> subprocess.Popen:
        """A process that makes the way, of the maker that this module has."""
        here = pathlib.Path(__file__).resolve().parent
        module = maker.__module__
        if module == "__main__":
            module = pathlib.Path(sys.argv[0]).stem
        words = (str(theirs.fileno()), module, maker.__qualname__)
        # Without -P the folder where we stand would come first.
        return subprocess.Popen(
            [self.python, "-P", "-c", _SERVE, *words],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(self.checkout), str(here)]),
            },
            pass_fds=[theirs.fileno()],
        )


_SERVE = "import sys, turns; turns.serve(*sys.argv[1:])"


def serve(handle: str, module: str, maker: str) -> None:
    """The process of another build's way; its arguments come by the pipe."""
    pipe = Connection(int(handle))

    def made(*arguments: Any) -> Way:
        return getattr(importlib.import_module(module), maker)(*arguments)

    _work(pipe, made, pipe.recv())


class Worker:
    """A way in a process of its own.

    Args:
      name: for messages.
      maker: a function of a module here, which makes the way.
      arguments: of it; of plain types where a build is given, for what it
        imports is not what we do.
      build: of the package, None for the one that is imported here.
    """

    def __init__(
        self,
        name: str,
        maker: Maker,
        arguments: Sequence[Any] = (),
        build: Build | None = None,
    ):
        # Fork would copy locks that JAX's threads hold.
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.outputs: dict[str, np.ndarray] = {}
        self.facts: dict[str, Any] = {}
        self.pipe, theirs = context.Pipe()
        self.process: Any
        if build is None:
            self.process = context.Process(
                target=_work,
                args=(theirs, maker, tuple(arguments)),
                daemon=True,
            )
            self.process.start()
        else:
            self.process = build.started(maker, theirs)
            self.pipe.send(tuple(arguments))
        theirs.close()

    def made(self) -> "Worker":
        """Waits until the way is there, with its outputs and facts."""
        self.outputs, self.facts = self.answer()
        return self

    def answer(self) -> Any:
        """What the process says next."""
        try:
            fine, said = self.pipe.recv()
        except EOFError:
            raise SystemExit(f"{self.name}: its process ended.") from None
        if not fine:
            raise SystemExit(f"{self.name}:\n{said}")
        return said

    def seconds(self, count: int, work: str | None = None) -> float:
        """Of one piece of work, over so many."""
        self.pipe.send((work, count))
        return self.answer() / count

    def end(self) -> None:
        """Lets the process go."""
        self.pipe.close()
        if isinstance(self.process, subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        else:
            self.process.join(10)
        self.process.kill()


def _work(pipe: Connection, maker: Maker, arguments: Sequence[Any]) -> None:
    """The other process: makes the way, then runs it as often as it is told."""
    try:
        way = maker(*arguments)
        outputs = {k: np.asarray(x) for k, x in way.outputs.items()}
        pipe.send((True, (outputs, dict(way.facts))))
        while True:
            work, count = pipe.recv()
            run = way.run if work is None else way.works[work]
            before = time.perf_counter()
            own = run(count)
            taken = time.perf_counter() - before
            pipe.send((True, own if isinstance(own, float) else taken))
    except EOFError:
        pass
    except BaseException:
        pipe.send((False, traceback.format_exc()))


@contextlib.contextmanager
def started(
    makers: Mapping[str, Sequence[Any]],
) -> Iterator[dict[str, Worker]]:
    """Workers by name, one made after another: what they compile is work too.

    Args:
      makers: name -> what makes the way in its process, with what, and of
        which build if not of this one.
    """
    workers: dict[str, Worker] = {}
    try:
        for name, made in makers.items():
            workers[name] = Worker(name, *made)
            workers[name].made()
        yield workers
    finally:
        for one in workers.values():
            one.end()


def differences_of(
    workers: Mapping[str, Worker],
    tolerance: float,
    groups: Sequence[Sequence[str]] = (),
) -> dict[str, dict[str, float]]:
    """Differences of outputs from the first of each group (of all by default).

    Raises:
      SystemExit: one is above the tolerance.
    """
    return {
        name: compared(
            workers[group[0]].outputs, workers[name].outputs, tolerance, name
        )
        for group in groups or [list(workers)]
        for name in group[1:]
    }


def in_turn(
    workers: Mapping[str, Worker],
    counts: Mapping[str, int],
    repeats: int,
    work: str | None = None,
) -> dict[str, list[float]]:
    """Seconds of a piece of work at each turn, by way."""
    taken: dict[str, list[float]] = {name: [] for name in workers}
    for repeat in range(repeats):
        for name in list(workers)[:: 1 if repeat % 2 else -1]:
            taken[name].append(workers[name].seconds(counts[name], work))
    return taken


def ratios(
    taken: Mapping[str, Sequence[float]],
    pairs: Mapping[str, tuple[str, str]],
) -> dict[str, dict[str, float]]:
    """Spreads of the ratios within turns.

    Args:
      taken: seconds by way.
      pairs: name of a ratio -> the ways below and above its line.
    """
    return {
        name: spread(
            [y / x for x, y in zip(taken[ours], taken[peer], strict=True)]
        )
        for name, (ours, peer) in pairs.items()
    }


def measure(
    makers: Mapping[str, tuple[Maker, Sequence[Any]]],
    *,
    tolerance: float,
    repeats: int = 7,
    seconds: float = 2.0,
    alike: Sequence[Sequence[str]] = (),
    pairs: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Times ways in turn, the first of which is ours.

    Args:
      makers: name -> what makes the way in its process, and with what.
      tolerance: largest difference of outputs, relative to the largest number
        in them.
      repeats: turns.
      seconds: that a way runs at each turn, at least.
      alike: names of the ways whose outputs must be alike; all by default.
      pairs: name of a ratio -> the ways below and above its line; by default
        the first against each of the others, by their names.

    Returns:
      `seconds` of each way and `ratio` of each pair (theirs / ours: above 1
      ours is faster) as median and quartiles, `differences` and `facts`.

    Raises:
      SystemExit: outputs differ, or a process failed.
    """
    with started(makers) as workers:
        differences = differences_of(workers, tolerance, alike)
        counts = {}
        for name, one in workers.items():
            one.seconds(1)
            counts[name] = max(1, round(seconds / one.seconds(1)))
        taken = in_turn(workers, counts, repeats)
        facts = {name: one.facts for name, one in workers.items() if one.facts}
    first, *others = makers
    if pairs is None:
        pairs = {name: (first, name) for name in others}
    return {
        "seconds": {name: spread(x) for name, x in taken.items()},
        "ratio": ratios(taken, pairs),
        "differences": differences,
        "facts": facts,
    }


def compared(
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    tolerance: float,
    name: str,
) -> dict[str, float]:
    """The largest difference of each output, over our largest number.

    Raises:
      SystemExit: one is above the tolerance, or of another name or shape.
    """
    if set(ours) != set(theirs):
        raise SystemExit(
            f"{name} has the outputs {sorted(theirs)}, ours are "
            f"{sorted(ours)}: not the same work."
        )
    found = {}
    for key, x in ours.items():
        y = theirs[key]
        if x.shape != y.shape:
            raise SystemExit(
                f"{name}, {key}: shape {y.shape}, ours has {x.shape}: not the "
                "same work."
            )
        largest = float(np.abs(x).max(initial=0)) or 1.0
        difference = float(np.abs(x - y).max(initial=0)) / largest
        # NaN, too.
        if not difference <= tolerance:
            raise SystemExit(
                f"{name}, {key}: differs from ours by {difference:.2g} of the "
                f"largest number, expected at most {tolerance:.2g}: not the "
                "same work."
            )
        found[key] = float(f"{difference:.2g}")
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, extremes and number of what was measured."""
    low, _, high = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1
        else [values[0]] * 3
    )
    return {
        "median": float(f"{statistics.median(values):.4g}"),
        "low": float(f"{low:.4g}"),
        "high": float(f"{high:.4g}"),
        "least": float(f"{min(values):.4g}"),
        "most": float(f"{max(values):.4g}"),
        "repeats": len(values),
    }


def report(
    results: Sequence[Mapping[str, Any]],
    *,
    out: pathlib.Path,
    device: str | None = None,
    hidden: Sequence[str] = (),
    told: bool = True,
    **more: Any,
) -> None:
    """Writes the JSON file and prints it.

    Args:
      results: one a case, each with its `case`.
      out: the file.
      device: of an accelerator; None for the processor.
      hidden: flags whose values are paths of this machine.
      told: whether it is printed.
      **more: what else the file says.
    """
    text = json.dumps(
        {
            "command": command(hidden),
            "device": device or processor(),
            "versions": versions(),
            **more,
            "results": list(results),
        },
        indent=2,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n")
    if told:
        print(text)


def commit(checkout: pathlib.Path | None = None) -> str | None:
    """Of a checkout (this one), `-dirty` with changes; None without git."""
    folder = checkout or pathlib.Path(__file__).resolve().parent.parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return found.stdout.strip() or None


def command(hidden: Sequence[str] = ()) -> str:
    """How the script was started; values of hidden flags by their names."""
    words = []
    for word in sys.argv[1:]:
        flag, equals, _ = word.partition("=")
        name = flag.removeprefix("--")
        if name == "out":
            word = f"{flag}=FILE.json"
        words.append(f"{flag}={name.upper()}" if name in hidden else word)
        if name in hidden and not equals:
            raise SystemExit(f"Write {flag}=VALUE in one word.")
    script = pathlib.Path(sys.argv[0]).name
    return " ".join(["python", f"benchmarks/{script}", *words])


def processor() -> str:
    """The processor, in words."""
    model = platform.machine()
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model += f", {line.partition(':')[2].strip()}"
                break
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores"


def accelerator(jax: Any) -> str | None:
    """JAX's device in words, None where that is the processor."""
    device = jax.devices()[0]
    return None if device.platform == "cpu" else device.device_kind


def versions() -> dict[str, str]:
    """Of Python and what is compared, where installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The flags that all scripts have."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", required=True, type=pathlib.Path)
    made.add_argument("--repeats", type=int, default=7)
    made.add_argument("--seconds", type=float, default=2.0)
    return made
