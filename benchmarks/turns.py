"""Ours and a peer in turn: processes of their own, medians, one JSON file.

What a script here asks is asked of `Way`s: each is made in a process of its
own, which stays, so that no way's threads or memory are in another's way. Their
outputs are compared before anything is timed. Then each is told in turn to run
for a while, the order reversed every other time; what counts are ratios within
a turn, for machines get faster and slower in the meantime.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
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
      run: does it so many times, and returns when it is done.
      outputs: name -> what must be alike whatever the way.
      facts: what else is known of it, for the JSON (FLOPs, bytes).
    """

    run: Callable[[int], Any]
    outputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Maker = Callable[..., Way]


class _Worker:
    """A way in a process of its own."""

    def __init__(self, name: str, maker: Maker, arguments: Sequence[Any]):
        # Fork would copy locks that JAX's threads hold.
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, maker, tuple(arguments)), daemon=True
        )
        self.process.start()
        theirs.close()

    def answer(self) -> Any:
        """What the process says next."""
        try:
            fine, said = self.pipe.recv()
        except EOFError:
            raise SystemExit(f"{self.name}: its process ended.") from None
        if not fine:
            raise SystemExit(f"{self.name}:\n{said}")
        return said

    def seconds(self, count: int) -> float:
        """Of one piece of work, over so many."""
        self.pipe.send(count)
        return self.answer() / count

    def end(self) -> None:
        """Lets the process go."""
        self.pipe.close()
        self.process.join(10)
        self.process.kill()


def _work(pipe: Connection, maker: Maker, arguments: Sequence[Any]) -> None:
    """The other process: makes the way, then runs it as often as it is told."""
    try:
        way = maker(*arguments)
        outputs = {k: np.asarray(x) for k, x in way.outputs.items()}
        pipe.send((True, (outputs, dict(way.facts))))
        while True:
            count = pipe.recv()
            before = time.perf_counter()
            way.run(count)
            pipe.send((True, time.perf_counter() - before))
    except EOFError:
        pass
    except BaseException:
        pipe.send((False, traceback.format_exc()))


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
    workers = []
    try:
        said: dict[str, Any] = {}
        for name, (maker, arguments) in makers.items():
            # One after another: what they compile is work too.
            workers.append(_Worker(name, maker, arguments))
            said[name] = workers[-1].answer()
        differences = {}
        for group in alike or [list(makers)]:
            for name in group[1:]:
                differences[name] = compared(
                    said[group[0]][0], said[name][0], tolerance, name
                )
        counts = {}
        for one in workers:
            one.seconds(1)
            counts[one.name] = max(1, round(seconds / one.seconds(1)))
        taken: dict[str, list[float]] = {one.name: [] for one in workers}
        for repeat in range(repeats):
            for one in workers if repeat % 2 else reversed(workers):
                taken[one.name].append(one.seconds(counts[one.name]))
    finally:
        for one in workers:
            one.end()
    first, *others = makers
    if pairs is None:
        pairs = {name: (first, name) for name in others}
    return {
        "seconds": {name: spread(x) for name, x in taken.items()},
        "ratio": {
            name: spread(
                [y / x for x, y in zip(taken[ours], taken[peer], strict=True)]
            )
            for name, (ours, peer) in pairs.items()
        },
        "differences": differences,
        "facts": {name: facts for name, (_, facts) in said.items() if facts},
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
    """Median, quartiles and number of what was measured."""
    low, _, high = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1
        else [values[0]] * 3
    )
    return {
        "median": float(f"{statistics.median(values):.4g}"),
        "low": float(f"{low:.4g}"),
        "high": float(f"{high:.4g}"),
        "repeats": len(values),
    }


def report(
    results: Sequence[Mapping[str, Any]],
    *,
    out: pathlib.Path,
    device: str | None = None,
    hidden: Sequence[str] = (),
) -> None:
    """Writes the JSON file and prints it.

    Args:
      results: one a case, each with its `case`.
      out: the file.
      device: of an accelerator; None for the processor.
      hidden: flags whose values are paths of this machine.
    """
    text = json.dumps(
        {
            "command": command(hidden),
            "device": device or processor(),
            "versions": versions(),
            "results": list(results),
        },
        indent=2,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n")
    print(text)


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
