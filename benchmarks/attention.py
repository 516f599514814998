"""Is `jax.nn.dot_product_attention` as exact as ours, and not slower?

    python benchmarks/attention.py --out=benchmarks/results/attention.json

T5's attention on this machine: no scaling, a bias by relative position, a
padding mask, no dropout (`jax.nn` has none). First alone, then where it counts:
in the scanned layers of whole models, forward, with the gradient of a shallow
prompt, and decoding step by step. Each repeat runs ours and theirs in turn;
`ratio` is the median over repeats of theirs / ours in seconds, so that above 1
ours is faster. `error` is the largest difference to float64, `difference` that
between the outputs of the two models (decoding: between ids of tokens, which
in bf16 rounding decides now and then).
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from panda_jax import models
from panda_jax.config.runs import versions
from panda_jax.models import bert, decode, layers, t5
from panda_jax.prompts import Prompt

OURS = layers.attend
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
# Backbone (with 512 words), rows, words each, and tokens written by greedy
# decoding; 0 for the logits or hidden states.
MODELS = {
    "T5 1.1 small, 4 x 128": ("t5_1_1-small", 4, 128, 0),
    "T5 1.1 small, 2 x 400": ("t5_1_1-small", 2, 400, 0),
    "T5 1.1 small, decoding": ("t5_1_1-small", 8, 64, 16),
    "MiniLM, 8 x 64": ("minilm-l6", 8, 64, 0),
    "MiniLM, 2 x 256": ("minilm-l6", 2, 256, 0),
}


def ours(query, key, value, positions, mask):
    """The attention of `panda_jax.models`."""
    return OURS(
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


def seconds(function: Any, calls: int) -> float:
    """Of one call, over `calls` of them."""
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(function())
    return (time.perf_counter() - start) / calls


def measure(functions: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Medians of interleaved calls; the functions are compiled already."""
    calls = max(1, int(0.05 / seconds(functions["ours"], 2)))
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats):
        names = list(functions)
        for name in names if repeat % 2 else reversed(names):
            taken[name].append(seconds(functions[name], calls))
    ratios = [
        b / a for a, b in zip(taken["ours"], taken["jax.nn"], strict=True)
    ]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [
            round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]
        ],
        "seconds": {k: statistics.median(v) for k, v in taken.items()},
    }


def alone(case: str, dtype: str, *, gradient: bool, repeats: int) -> dict:
    """One row: the attention by itself."""
    inputs = arguments(case, dtype)
    functions, error = {}, {}
    for name, function in (("ours", ours), ("jax.nn", theirs)):
        output = jax.jit(function)(*inputs)
        reference = exact(*(np.asarray(x) for x in inputs))
        error[name] = float(np.abs(np.float64(output) - reference).max())
        if gradient:
            # With respect to query, key, value: the positions are frozen.
            def loss(*inputs, function=function):
                return jnp.square(function(*inputs).astype(jnp.float32)).sum()

            function = jax.grad(loss, argnums=(0, 1, 2))
        functions[name] = functools.partial(jax.jit(function), *inputs)
        jax.block_until_ready(functions[name]())
    return measure(functions, repeats) | {"error": error}


def of_jax_nn(query, key, value, bias, **settings):
    """`layers.attend` by `jax.nn`, where there is no dropout."""
    positions = settings.get("positions")
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=bias if positions is None else positions + bias,
        scale=settings.get("scale"),
    )


def in_model(where: str, dtype: str, *, gradient: bool, repeats: int) -> dict:
    """One row: a whole model with a shallow prompt of 20."""
    name, rows, length, steps = MODELS[where]
    config = dataclasses.replace(
        models.config(name), vocab_size=512, dtype=dtype
    )
    module = models.module(config)
    params = jax.jit(module.init, static_argnums=1)(jax.random.key(0), config)
    params = jax.tree.map(lambda x: x.astype(dtype), nn.meta.unbox(params))
    rng = np.random.default_rng(0)
    x, y = (rng.integers(2, 512, (rows, n)) for n in (length, 8))
    x[:, -length // 8 :] = 0
    vectors = jnp.asarray(rng.normal(size=(20, config.width)), jnp.float32)

    def output(vectors, params):
        prompt = Prompt(vectors, {})
        if isinstance(config, bert.BertConfig):
            return bert.apply(params, config, x, 0 * x, prompt)[1]["hidden"]
        if steps:
            return decode.greedy(params, config, x, prompt, steps=steps)
        return t5.apply(params, config, x, y, prompt)[0]

    def loss(vectors, params):
        return jnp.square(output(vectors, params).astype(jnp.float32)).mean()

    functions, outputs = {}, []
    for side, attend in (("ours", OURS), ("jax.nn", of_jax_nn)):
        layers.attend = attend
        # What was traced with the other one must not be found again.
        jax.clear_caches()
        run = jax.jit(jax.grad(loss) if gradient else output)
        compiled = run.lower(vectors, params).compile()
        functions[side] = functools.partial(compiled, vectors, params)
        outputs.append(np.float64(functions[side]()))
    layers.attend = OURS
    difference = float(np.abs(outputs[0] - outputs[1]).max())
    return measure(functions, repeats) | {"difference": difference}


def main() -> None:
    """Measures and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    chosen = parser.parse_args()
    report = {
        "command": f"python {' '.join(sys.argv)}",
        "machine": f"{platform.machine()}, {jax.default_backend()}, "
        f"{os.cpu_count()} cores",
        "versions": versions(),
        "results": [],
    }
    for dtype, gradient in itertools.product(
        ("float32", "bfloat16"), (False, True)
    ):
        rows = [(case, alone) for case in CASES]
        rows += [(case, in_model) for case in MODELS]
        for where, measured in rows:
            if gradient and "decoding" in where:
                continue
            row = {"where": where, "dtype": dtype, "gradient": gradient}
            row |= measured(
                where, dtype, gradient=gradient, repeats=chosen.repeats
            )
            report["results"].append(row)
            print(json.dumps(row), flush=True)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
