"""How long from starting Python to the first training batch?

    python benchmarks/first_batch.py --data_dir=DATA --out=FILE.json

For each task a fresh process, in turn: `cache` reads the filled token cache,
`seqio` runs the same SeqIO task and takes the first batch, as without one.
With `--rows=N` also a made-up task of N rows in MNLI's format.  Seconds are
medians over `--repeats`; what counts is the ratio.
"""

import argparse
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

SHARED = """
import json, sys, time
from panda_jax.store.backbones import minilm_folder
from panda_jax.data.tokenizer import Tokenizer
task, folder = sys.argv[1:3]
tokenizer = Tokenizer.from_folder(minilm_folder())
"""
CACHE = """
import numpy as np
from panda_jax import data
examples = data.load_examples(
    task, "train", tokenizer=tokenizer, data_dir=folder
)
fingerprint = examples.fingerprint
order = data.batch_indices(len(examples), 16, seed=0, epoch=0)
batch = examples.batch(order[0])
"""
SEQIO = """
from panda_jax.tasks import features, registry, specs
spec = specs.get(task)
bound = registry.task(task, tokenizer=tokenizer, data_dir=folder)
lengths = features.sequence_lengths(spec, 128)
rows = bound.get_dataset(lengths, "train", shuffle=False)
rows = features.EncoderFeatureConverter(spec)(rows, lengths)
batch = next(iter(rows.batch(16).as_numpy_iterator()))
"""
END = """
heavy = sorted({"tensorflow", "seqio"} & set(sys.modules))
print(json.dumps([time.time() - float(sys.argv[3]), heavy]))
"""


def seconds(code: str, task: str, folder: str) -> tuple[float, list[str]]:
    """Seconds from before Python starts to the first batch; what it loaded."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SHARED + code + END,
            task,
            folder,
            str(time.time()),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    took, heavy = json.loads(done.stdout.splitlines()[-1])
    return took, heavy


def made_up_mnli(folder: pathlib.Path, rows: int) -> None:
    """Writes `rows` training rows with the columns that the task reads."""
    path = folder / "glue" / "MNLI" / "train.tsv"
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        file.write("sentence1\tsentence2\tgold_label\n")
        for i in range(rows):
            words = " ".join(f"word{(i * 7 + j) % 997}" for j in range(12))
            label = ("entailment", "neutral", "contradiction")[i % 3]
            file.write(f"{words} in row {i}\tThe row says {i}.\t{label}\n")


def main() -> None:
    """Measures and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--tasks", default="")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    from panda_jax.tasks import readers, specs

    from panda_jax.config.runs import versions

    folder = pathlib.Path(arguments.data_dir)
    names = [name for name in arguments.tasks.split(",") if name] or [
        name
        for name in specs.names()
        if specs.get(name).source
        and not readers.absent(specs.get(name), folder)
    ]
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        places = [(name, name, str(folder)) for name in names]
        if arguments.rows:
            made_up_mnli(pathlib.Path(temporary), arguments.rows)
            shown = f"made-up mnli, {arguments.rows} rows"
            places.append((shown, "mnli", temporary))
        for shown, task, place in places:
            seconds(CACHE, task, place)  # fills the cache
            taken: dict[str, list[float]] = {"cache": [], "seqio": []}
            loaded = {}
            for _ in range(arguments.repeats):
                for mode, code in (("cache", CACHE), ("seqio", SEQIO)):
                    took, loaded[mode] = seconds(code, task, place)
                    taken[mode].append(took)
            medians = {k: statistics.median(v) for k, v in taken.items()}
            results[shown] = {
                "seconds": {k: round(v, 2) for k, v in medians.items()},
                "seqio_over_cache": round(
                    medians["seqio"] / medians["cache"], 1
                ),
                "loaded": loaded,
            }
            print(shown, json.dumps(results[shown]), flush=True)
    report = {
        "command": "python benchmarks/first_batch.py --data_dir=DATA "
        f"--rows={arguments.rows} --repeats={arguments.repeats}",
        "machine": f"{platform.machine()}, CPU",
        "versions": versions(),
        "results": results,
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
