"""File-system calls of a grid's whole life, training left out.

    python benchmarks/grid_calls.py --out=FILE.json --workers=2 --timed

Runs a grid of about 10,000 runs in 400 fleets (`small`: 1,672 in 66) with a
stand-in for training that writes the result files alone, under `strace`. Calls
on the grid's folder count, but for those of the stand-in. Also the seconds
spent on finding the next fleet, in a second life without strace. The same
script with another checkout in PYTHONPATH measures that.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

SIZES = ("tiny", "mini", "small", "medium", "base", "large")
# Looked up around the stand-in, so that its calls are told from the others.
MARKS = ("/stand-in-begins", "/stand-in-ends")
# strace prints: thread, call, arguments with the paths of descriptors.
LINE = re.compile(r"^(\d+) +(\w+)\((.*)")
# Calls that name a path; the others go by a descriptor.
BY_PATH = ("open", "stat", "mkdir", "rename", "unlink", "link", "rmdir")


def made_up_grid(scale: str) -> Any:
    """18 sources, 22 targets, two seeds, by four methods."""
    from panda_jax.tasks import specs

    from panda_jax.experiments.grid.grid import Grid

    tasks = [x for x in specs.names() if x not in specs.MIXTURES][:22]
    sizes = SIZES[:1] if scale == "small" else SIZES
    return Grid(
        backbones=tuple(f"random:bert-{size}" for size in sizes),
        sources=tuple(tasks[:18]),
        targets=tuple(tasks),
        seeds=(0, 1),
        methods=("prompt", "control", "pot", "panda"),
        settings={"steps": 300},
    )


def work(out: str, scale: str, shard: str) -> None:
    """One worker; prints the seconds that it spent on looking for work."""
    from panda_jax.experiments.grid import runner
    from panda_jax.training.lane import TrainResult

    def stand_in(backbone, lanes, *, out_dir, **options):
        os.access(MARKS[0], os.F_OK)
        result = {"seconds": 60.0}
        for lane in lanes:
            folder = pathlib.Path(out_dir, lane)
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(result))
        os.access(MARKS[1], os.F_OK)
        prompt: Any = None
        return {lane: TrainResult(prompt, result) for lane in lanes}

    spent = [0.0, 0]
    find = runner.Worker._next

    def timed(self):
        began = time.perf_counter()
        found = find(self)
        spent[0] += time.perf_counter() - began
        spent[1] += 1
        return found

    runner.Worker._next = timed
    runner.train_fleet = stand_in
    runner.load_prompt = runner.load_backbone = lambda *a, **k: None
    found = runner.run_grid(
        made_up_grid(scale), out, shard=shard, quiet=True, poll_seconds=1.0
    )
    assert found.done == found.total, found
    print(json.dumps(spent))


def workers(out: str, args: argparse.Namespace, prefix: list[str]) -> list:
    """Starts them at once; returns them."""
    return [
        subprocess.Popen(
            [
                *prefix, sys.executable, __file__, f"--work={out}",
                f"--scale={args.scale}", f"--shard={index}/{args.workers}",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(args.workers)
    ]  # fmt: skip


def counted(lines, out: str) -> collections.Counter:
    """Calls on the folder by name, but for the stand-in's."""
    found: collections.Counter = collections.Counter()
    aside = set()
    for line in lines:
        call = LINE.match(line)
        if call is None:
            continue
        thread, name, rest = call.groups()
        if MARKS[0] in rest:
            aside.add(thread)
        elif MARKS[1] in rest:
            aside.discard(thread)
        elif thread not in aside and out in rest:
            # Python's fstat, as newer kernels have it.
            found["by_fd" if "AT_EMPTY_PATH" in rest else name] += 1
    return found


def traced(args: argparse.Namespace) -> dict[str, int]:
    """By call, of all workers, in a life under strace."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "the-grid")
        pipe = os.path.join(folder, "pipe")
        os.mkfifo(pipe)
        strace = [
            "strace", "-f", "-qq", "-y", "--seccomp-bpf", "-s", "0",
            "-e", "trace=%file,%desc", "-o", pipe,
        ]  # fmt: skip
        found = workers(out, args, strace)
        # One pipe for all: a thread's number is nobody else's.
        with open(pipe, errors="replace") as lines:
            calls = counted(lines, out)
        for each in found:
            assert each.wait() == 0
    return dict(calls.most_common())


def timed(args: argparse.Namespace) -> tuple[float, int]:
    """Seconds and how often work was looked for, in a life without strace."""
    with tempfile.TemporaryDirectory() as folder:
        found = workers(os.path.join(folder, "the-grid"), args, [])
        said = [json.loads(each.communicate()[0]) for each in found]
    return sum(s for s, _ in said), sum(n for _, n in said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--scale", choices=("small", "full"), default="full")
    parser.add_argument("--timed", action="store_true", help="a second life")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.scale, args.shard)
        return
    from panda_jax.experiments.grid.grid import expand

    plan = expand(made_up_grid(args.scale))
    calls = traced(args)
    seconds, looks = timed(args) if args.timed else (None, None)
    by_path = sum(
        n for name, n in calls.items() if any(x in name for x in BY_PATH)
    )
    found = {
        "runs": len(plan.runs),
        "fleets": len(plan.groups),
        "workers": args.workers,
        "calls_with_a_path": by_path,
        "calls_with_a_path_a_run": round(by_path / len(plan.runs), 3),
        "all_calls": sum(calls.values()),
        "all_calls_a_run": round(sum(calls.values()) / len(plan.runs), 3),
        "calls": calls,
        "seconds_looking": seconds and round(seconds, 3),
        "looks": looks,
    }
    text = json.dumps(found, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
