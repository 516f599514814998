"""What does scoring a bank cost over the forward passes that it takes?

    python benchmarks/bank_scoring.py --data_dir=DATA --out=FILE.json

Writes a bank of random deep prompts to disk, then in turn, slice by slice:
`ours`, `pj.score` of the slice by metric panda from its folders into an empty
cache; and `plain`, as many calls of the jitted forward pass on the same rows.
Also: peak memory after each slice, how often the probe was compiled, a call for
the whole bank that the cache answers, and 10,000 x 100 stored vectors.
Seconds are medians over slices; what counts is the ratio.
"""

import argparse
import json
import pathlib
import platform
import resource
import statistics
import sys
import tempfile
import time

import jax
import numpy as np

import panda_jax as pj
from panda_jax.config import runs
from panda_jax.io.files import write_json
from panda_jax.prompts import Prompt
from panda_jax.step import steps
from panda_jax.store.prompt_folders import PromptInfo
from panda_jax.training.evaluation import load_view
from panda_jax.transfer import probing, similarity

ROWS = 100
MAX_LENGTH = 64


def write_bank(backbone: pj.Backbone, task: str, folder, count: int) -> None:
    """`count` random deep prompts of 20 that say they are of `task`."""
    c = backbone.config
    rng = np.random.default_rng(0)
    for i in range(count):
        shape = (c.layers, 2, 20, c.heads, c.head_dim)
        vectors = rng.normal(size=shape).astype(np.float32)
        info = PromptInfo(
            task=task,
            backbone=backbone.id,
            fingerprint=backbone.fingerprint,
            kind="deep",
            method="prompt",
            max_length=MAX_LENGTH,
        )
        pj.save_prompt(folder / f"p{i:04d}", Prompt(vectors, {}), info)


def megabytes() -> float:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(name: str, task: str, data_dir: str, count: int, slices: int):
    """One backbone's figures."""
    backbone = pj.load_backbone(name)
    rows = load_view(
        task,
        "train",
        backbone=backbone,
        max_length=MAX_LENGTH,
        data_dir=data_dir,
        limit=ROWS,
    )

    @jax.jit
    def plain(params, vectors):
        found = steps.probe(
            params,
            rows.tokens,
            rows.segments,
            vectors,
            config=backbone.config,
        )
        return found["mean"].mean(0)

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "bank"
        write_bank(backbone, task, folder, count)
        bank = pj.PromptBank(folder)
        names = bank.names
        size = count // slices
        parts = [names[i * size : (i + 1) * size] for i in range(slices)]
        options = {
            "metrics": ("panda",),
            "backbone": backbone,
            "data_dir": data_dir,
            "examples": ROWS,
        }

        def ours(chosen, **more):
            part = Part(bank, chosen)
            pj.score(sources=part, targets=part, **options, **more)

        probing.probe_lanes.clear_cache()
        ours(parts[0][:1], cached=False)
        vectors = [bank.read(n).prompt.vectors for n in parts[0]]
        plain(backbone.params, vectors[0]).block_until_ready()
        memory = [megabytes()]
        ratios, seconds = [], []
        for part in parts:
            begun = time.perf_counter()
            ours(part)
            between = time.perf_counter()
            for each in vectors:
                found = plain(backbone.params, each)
            found.block_until_ready()
            end = time.perf_counter()
            seconds.append((between - begun, end - between))
            ratios.append((end - between) / (between - begun))
            memory.append(megabytes())
            print(name, seconds[-1], memory[-1], file=sys.stderr, flush=True)
        compiled = probing.probe_lanes._cache_size()
        begun = time.perf_counter()
        ours(names)
        second = time.perf_counter() - begun
    return {
        "backbone": name,
        "prompts": count,
        "rows": ROWS,
        "tokens": rows.tokens.shape[1],
        "examples_a_second_of_plain": statistics.median(ratios),
        "least": min(ratios),
        "seconds_a_slice": {
            "ours": statistics.median(a for a, _ in seconds),
            "plain": statistics.median(b for _, b in seconds),
        },
        "peak_mebibytes": memory,
        "compilations": compiled,
        "second_call_seconds": second,
    }


class Part(pj.PromptBank):
    """Some prompts of a bank on disk."""

    def __init__(self, bank: pj.PromptBank, names: list[str]) -> None:
        self._paths = {name: bank._paths[name] for name in names}
        self._loaded = {}


def main() -> None:
    """Measures both backbones and the product of stored vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--task", default="rte")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--tiny", type=int, default=1000)
    parser.add_argument("--minilm", type=int, default=64)
    args = parser.parse_args()
    found = [
        measured("random:bert-tiny", args.task, args.data_dir, args.tiny, 10),
        measured("minilm-l6", args.task, args.data_dir, args.minilm, 8),
    ]
    rng = np.random.default_rng(0)
    a = rng.normal(size=(10_000, 1024)).astype(np.float32)
    b = rng.normal(size=(100, 1024)).astype(np.float32)
    product = []
    for _ in range(5):
        begun = time.perf_counter()
        similarity.activation_similarity(a, b).block_until_ready()
        product.append(time.perf_counter() - begun)
    report = {
        "found": found,
        "seconds_of_10000_x_100": product,
        "device": str(jax.devices()[0]),
        "machine": platform.machine(),
        "versions": runs.versions(),
    }
    print(json.dumps(report, indent=1))
    if args.out:
        write_json(args.out, report)


if __name__ == "__main__":
    main()
