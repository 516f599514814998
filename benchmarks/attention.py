"""Is `jax.nn.dot_product_attention` as exact as ours, and not slower?

    python benchmarks/attention.py --out=benchmarks/results/attention.json

T5's attention on this machine: no scaling, a bias by relative position, a
padding mask, no dropout (`jax.nn` has none).  Each repeat runs ours and theirs
in turn; `ratio` is the median over repeats of theirs / ours in seconds, so that
above 1 ours is faster.  `error` is the largest difference to float64.
"""

import argparse
import json
import pathlib
import platform
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.models import layers
from panda_jax.runs import versions

# Queries, keys, heads and rows: T5 1.1 base where not said otherwise.
CASES = {
    "encoder, small": (128, 128, 8, 8),
    "encoder": (128, 128, 12, 16),
    "encoder, prompt of 100": (228, 228, 12, 8),
    "decoder, teacher forced": (32, 32, 12, 16),
    "cross-attention": (32, 228, 12, 16),
    "decoding step": (1, 228, 12, 16),
}
HEAD_DIM = 64


def ours(query, key, value, positions, mask):
    """The attention of `panda_jax.models`."""
    return layers.attend(
        query,
        key,
        value,
        jnp.where(mask, 0.0, layers.MASKED),
        positions=positions,
        dropout_key=None,
        dropout_rate=0.0,
        scale=1.0,
    )


def theirs(query, key, value, positions, mask):
    """The attention of `jax.nn`."""
    return jax.nn.dot_product_attention(
        query, key, value, bias=positions, mask=mask, scale=1.0
    )


def exact(query, key, value, positions, mask) -> np.ndarray:
    """The same in float64."""
    query, key, value = (np.float64(x) for x in (query, key, value))
    scores = np.einsum("bthk,bshk->bhts", query, key) + np.float64(positions)
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhts,bshk->bthk", weights, value)


def arguments(case: str, dtype: str) -> tuple[jax.Array, ...]:
    """Query, key, value, positions and mask; scores are of order 1."""
    T, S, H, B = CASES[case]
    rng = np.random.default_rng(0)
    shapes = ((B, T, H, HEAD_DIM), (B, S, H, HEAD_DIM), (B, S, H, HEAD_DIM))
    query, key, value = (
        jnp.asarray(rng.normal(size=shape) * scale, dtype)
        for shape, scale in zip(shapes, (HEAD_DIM**-0.5, 1, 1), strict=True)
    )
    positions = jnp.asarray(rng.normal(size=(1, H, T, S)), jnp.float32)
    lengths = rng.integers(S // 2, S + 1, (B, 1, 1, 1))
    return query, key, value, positions, jnp.arange(S) < lengths


def seconds(function: Any, inputs: tuple[jax.Array, ...], calls: int) -> float:
    """Of one call, over `calls` of them."""
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(function(*inputs))
    return (time.perf_counter() - start) / calls


def compare(case: str, dtype: str, *, gradient: bool, repeats: int) -> dict:
    """One row of the table."""
    inputs = arguments(case, dtype)
    functions = {}
    for name, function in (("ours", ours), ("jax.nn", theirs)):
        if gradient:
            # With respect to query, key, value: the positions are frozen.
            def loss(*inputs, function=function):
                return jnp.square(function(*inputs).astype(jnp.float32)).sum()

            function = jax.grad(loss, argnums=(0, 1, 2))
        functions[name] = jax.jit(function)
    outputs = {name: f(*inputs) for name, f in functions.items()}
    once = seconds(functions["ours"], inputs, 3)
    calls = max(1, int(0.1 / once))
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats):
        names = list(functions)
        for name in names if repeat % 2 else reversed(names):
            taken[name].append(seconds(functions[name], inputs, calls))
    ratios = [
        b / a for a, b in zip(taken["ours"], taken["jax.nn"], strict=True)
    ]
    row = {
        "case": case,
        "dtype": dtype,
        "pass": "gradient" if gradient else "forward",
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "seconds": {k: statistics.median(v) for k, v in taken.items()},
    }
    if not gradient:
        reference = exact(*(np.asarray(x) for x in inputs))
        row["error"] = {
            name: float(np.abs(np.float64(output) - reference).max())
            for name, output in outputs.items()
        }
    return row


def main() -> None:
    """Measures and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    chosen = parser.parse_args()
    rows = []
    for dtype in ("float32", "bfloat16"):
        for case in CASES:
            for gradient in (False, True):
                rows.append(
                    compare(
                        case, dtype, gradient=gradient, repeats=chosen.repeats
                    )
                )
                print(json.dumps(rows[-1]), flush=True)
    result = {
        "machine": platform.processor() or platform.machine(),
        "backend": jax.default_backend(),
        "versions": versions(),
        "repeats": chosen.repeats,
        "rows": rows,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
