"""How long is it from the command to the first training step?

    python benchmarks/start_up.py --out=FILE.json

Starts `python -m panda_jax train` on a built-in task again and again, each time
with a run folder of its own, and reads its progress until it says that the
first step is done. The caches begin empty: the first start fills them
(tokens, compiled programs) and is told apart; the rest are second starts. In
turn with them runs `jax alone`, a process that imports JAX and compiles one
addition: what no program can start faster than, and what the machine was like
meanwhile. `cpu_seconds` are of the process up to its first step; wall time is
above them where other work is in its way.

Where the time goes is asked of starts of their own (`where`, medians, in
seconds of wall and of processor): they import first and time the parts.
Their `compiler` numbers are JAX's own, of all its programs, and overlap with
the parts.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import turns

OURS, FLOOR = "panda-jax train", "jax alone"
DONE = "first 1 steps"
_ALONE = f"""
import jax
jax.block_until_ready(jax.jit(lambda x: x + 1)(0.0))
print({DONE!r}, flush=True)
"""
INSIDE = "--inside"
# Which part of a start a function is; what they call of one another is taken
# off the caller.
_PARTS = {
    "training._loaded": "load the backbone, the rest",
    "backbone.minilm_folder": "hash the weights file",
    "hf.load": "read the weights",
    "backbone.content_hash": "hash the weights",
    "givens.load": "read the tokens",
    "Assembly.start": "the first prompt and optimizer state",
    "Assembly.load": "put the rows on the device",
    "Checkpoints.__init__": "open the checkpoints",
    "Lane.open": "open the metrics",
    "fleet.lower_steps": "trace and lower the step",
    "fleet.run_steps": "dispatch the step",
}


def started(
    command: list[str], environment: dict[str, str], *, end: bool
) -> tuple[float, float | None]:
    """Seconds until a process says that its first step is done.

    Args:
      command: to start.
      environment: of the process.
      end: whether to let it come to its end, rather than end it there.

    Returns:
      Wall seconds, and the processor's, where the system tells.
    """
    begun = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            if DONE in line:
                wall = time.perf_counter() - begun
                cpu = _cpu_seconds(process.pid)
                if end:
                    process.communicate()
                return wall, cpu
            said.append(line)
    finally:
        process.kill()
        process.wait()
    raise SystemExit(f"{' '.join(command)} ended early:\n{''.join(said)}")


def _cpu_seconds(pid: int) -> float | None:
    """All threads' user and system time so far."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(args: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Every start of one backbone, as a case of the report."""
    environment = {**os.environ, "PANDA_CACHE_DIR": str(folder / "cache")}
    # The program's own default counts.
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    runs = (str(folder / f"run{number}") for number in range(1 << 20))

    def train() -> list[str]:
        return [
            "train",
            f"--backbone={args.backbone}",
            f"--task={args.task}",
            "--steps=1",
            f"--model_dir={next(runs)}",
        ]

    whole = [sys.executable, "-m", "panda_jax"]
    first, _ = started([*whole, *train()], environment, end=True)
    wall: dict[str, list[float]] = {OURS: [], FLOOR: []}
    cpu: dict[str, list[float]] = {OURS: [], FLOOR: []}
    for repeat in range(args.repeats):
        commands = {
            OURS: [*whole, *train()],
            FLOOR: [sys.executable, "-c", _ALONE],
        }
        for name in commands if repeat % 2 else reversed(commands):
            seconds, used = started(commands[name], environment, end=False)
            wall[name].append(seconds)
            cpu[name] += [used] if used is not None else []
    inside = [sys.executable, os.path.abspath(__file__), INSIDE]
    parts = [
        _parts([*inside, *train()], environment)
        for _ in range(min(3, args.repeats))
    ]
    facts: dict[str, dict[str, Any]] = {
        name: {"cpu_seconds": turns.spread(used)} if used else {}
        for name, used in cpu.items()
    }
    facts[OURS] |= {
        "first_start_seconds": round(first, 3),
        "where": _medians(parts),
    }
    pairs = zip(wall[OURS], wall[FLOOR], strict=True)
    return {
        "case": f"{args.backbone}, {args.task}",
        "seconds": {name: turns.spread(x) for name, x in wall.items()},
        "ratio": {FLOOR: turns.spread([y / x for x, y in pairs])},
        "facts": facts,
    }


def _parts(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """What a start that times its own parts prints."""
    environment = {**environment, "START_UP_BEGUN": repr(time.time())}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _medians(found: list[Any]) -> Any:
    """Of like trees of numbers."""
    if isinstance(found[0], dict):
        return {
            key: _medians([one[key] for one in found if key in one])
            for key in found[0]
        }
    return round(statistics.median(found), 3)


class Clock:
    """Times parts of this process, in wall and processor seconds."""

    def __init__(self, begun: float) -> None:
        self.parts: dict[str, dict[str, float]] = {}
        self._open = [[0.0, 0.0]]
        self._last = (begun, 0.0)

    def mark(self, name: str) -> None:
        """What has passed since the last mark was this part."""
        now = (time.time(), time.process_time())
        self._add(name, now[0] - self._last[0], now[1] - self._last[1])
        self._last = now

    def _add(self, name: str, wall: float, cpu: float) -> None:
        part = self.parts.setdefault(name, {"wall": 0.0, "cpu": 0.0})
        part["wall"] += wall
        part["cpu"] += cpu

    def timed(self, name: str, function: Callable[..., Any]) -> Any:
        """The function, whose time without its own parts is this part."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            begun = (time.time(), time.process_time())
            self._open.append([0.0, 0.0])
            try:
                return function(*args, **options)
            finally:
                spent = (time.time() - begun[0], time.process_time() - begun[1])
                inner = self._open.pop()
                for kind, taken in enumerate(spent):
                    self._open[-1][kind] += taken
                self._add(name, spent[0] - inner[0], spent[1] - inner[1])

        return call

    def rest(self, name: str) -> None:
        """All since the last mark that was in no part is this one."""
        inner = self._open[0]
        self.mark(name)
        self._add(name, -inner[0], -inner[1])


def inside(argv: list[str]) -> None:
    """A start that times its parts, and ends with the first step."""
    clock = Clock(float(os.environ["START_UP_BEGUN"]))
    clock.mark("start Python")
    from panda_jax.cli import entry

    # JAX reads where its cache is when it is imported.
    entry._keep_compiled()
    clock.mark("import the command line")
    import jax
    import jax.monitoring

    clock.mark("import jax")
    import flax.linen  # noqa: F401
    import optax  # noqa: F401

    clock.mark("import flax and optax")
    from panda_jax.api import run_inputs, training
    from panda_jax.store import backbones
    from panda_jax.training import lane, step_inputs, trainer

    clock.mark("import panda_jax")
    from panda_jax.io import progress
    from panda_jax.training import checkpoints

    clock.mark("import orbax")
    compiler: dict[str, dict[str, float]] = {}

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        name = event.rpartition("/")[2].removesuffix("_duration")
        one = compiler.setdefault(name, {"times": 0, "wall": 0.0})
        one["times"] += 1
        one["wall"] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    owners = {
        "training": training,
        "backbone": backbones,
        "hf": backbones.hf,
        "givens": run_inputs,
        "Assembly": step_inputs.Assembly,
        "Checkpoints": checkpoints.Checkpoints,
        "Lane": lane.Lane,
        "fleet": trainer.fleet,
    }
    for place, name in _PARTS.items():
        owner, _, attribute = place.partition(".")
        plain = getattr(owners[owner], attribute)
        setattr(owners[owner], attribute, clock.timed(name, plain))

    def say(self: Any, text: str) -> None:
        if text.startswith(DONE):
            clock.rest("the rest, and the step itself")
            found = {"parts": clock.parts, "compiler": compiler}
            print(json.dumps(found), flush=True)
            os._exit(0)

    progress.Progress.say = say
    raise SystemExit(entry.main(argv) or "No step was done.")


def main() -> None:
    """Measures a backbone's start and writes a JSON file."""
    if sys.argv[1:2] == [INSIDE]:
        inside(sys.argv[2:])
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument("--task", default="toy_review")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(args, pathlib.Path(folder))
    turns.report([result], out=args.out)


if __name__ == "__main__":
    main()
