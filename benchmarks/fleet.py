"""Is a fleet faster than the same runs one after another?

    python benchmarks/fleet.py --task=rte --data_dir=DATA --out=FILE.json

Vanilla transfer to one task, as in `runs/paper_small.gin`: every source x seed
as one fleet (`train_fleet`), and by `train` one after another in the same
process, in turn, files and evaluations included, compilation (the first,
untimed round of each) not. What counts is the ratio; that the results are the
same is checked. The source prompts are barely trained: their content takes no
time.
"""

import argparse
import json
import pathlib
import platform
import statistics
import tempfile
import time
from typing import Any

import jax

import panda_jax as pj
from panda_jax.config.runs import versions
from panda_jax.experiments.grid.runner import programs

SOURCES = ("toy_sentiment", "toy_topic", "toy_acceptability", "toy_tense")


def main() -> None:
    """Times both ways and writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="toy_review")
    parser.add_argument("--data_dir")
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument("--sources", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max_length", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    args = parser.parse_args()
    backbone = pj.load_backbone(args.backbone)
    shape = {"max_length": args.max_length, "learning_rate": 2e-2}
    shape |= {"dropout": 0.0, "eval_examples": 64}
    prompts = [
        pj.train(backbone, task=source, steps=1, quiet=True, **shape).prompt
        for source in SOURCES[: args.sources]
    ]
    lanes: dict[str, dict[str, Any]] = {
        f"{source.info.task}-{seed}": {
            "task": args.task,
            "method": "pot",
            "source": source,
            "seed": seed,
            "train_examples": args.examples,
            "epochs": args.epochs,
            **shape,
        }
        for source in prompts
        for seed in range(args.seeds)
    }
    options: dict[str, Any] = {"data_dir": args.data_dir, "quiet": True}

    def fleet(folder: str) -> list[float]:
        done = pj.train_fleet(backbone, lanes, out_dir=folder, **options)
        return [result.best for result in done.values()]

    def in_turn(folder: str) -> list[float]:
        return [
            pj.train(
                backbone, model_dir=f"{folder}/{name}", **lane, **options
            ).best
            for name, lane in lanes.items()
        ]

    ways = {"fleet": fleet, "one after another": in_turn}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    compiled, found = {}, {}
    for repeat in range(args.repeats + 1):
        for name, way in ways.items():
            before, began = programs(), time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                found[name] = way(folder)
            if repeat:
                seconds[name].append(time.monotonic() - began)
            else:
                compiled[name] = programs() - before
    rows = len(lanes) * args.examples * args.epochs
    medians = {k: statistics.median(v) for k, v in seconds.items()}
    report = {
        "command": "python benchmarks/fleet.py "
        + " ".join(
            f"--{name}={value}"
            for name, value in vars(args).items()
            if name not in ("data_dir", "out")
        ),
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        "versions": versions(),
        "lanes": len(lanes),
        "training_steps_compiled": compiled,
        "seconds": {
            k: [round(one, 2) for one in v] for k, v in seconds.items()
        },
        "examples_per_second": {
            k: round(rows / v, 1) for k, v in medians.items()
        },
        "fleet_is_faster_by": round(
            medians["one after another"] / medians["fleet"], 3
        ),
        "same_results": found["fleet"] == found["one after another"],
    }
    text = json.dumps(report, indent=2) + "\n"
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
