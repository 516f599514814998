"""T5 from T5X checkpoints, read without T5X.

Our parameters have T5X's names; what differs is where the layers are.  T5X
keeps them apart (`encoder/layers_0/...`), or scanned on axis 1 of one array
(`encoder/encoder/...`, of `examples/scalable_t5`), where heads have an axis of
their own and each layer has a relative position bias.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from panda_jax.errors import UserError
from panda_jax.interop import t5x_files, tables
from panda_jax.models.t5 import T5Config
from panda_jax.types import Params

_LAYER = re.compile(r"(encoder|decoder)/layers_(\d{1,4})/")
_BIAS = "relpos_bias/rel_embedding"
_OWN = "its own arrays"
# What the arrays tell of a configuration; the rest is given, or T5's usual.
_TOLD = (
    "vocab_size",
    "width",
    "layers",
    "decoder_layers",
    "heads",
    "head_dim",
    "ffn",
    "buckets",
    "gated",
    "tied",
)


def load_t5x(
    folder: pathlib.Path, config: T5Config | None = None
) -> tuple[Params, T5Config]:
    """Parameters (fp32, numpy) and sizes of a T5X checkpoint.

    Args:
      folder: a legacy or orbax checkpoint, or the folder of one.
      config: what is known of the model: its sizes are held against the
        arrays', its dropout, epsilon, activation and distances are kept.
        Without it the sizes are the arrays', and the rest is what T5X's T5s
        have: gelu_new where gated and relu where not, distances up to 128.

    Returns:
      The parameter tree and the configuration. The optimizer's state in the
      checkpoint is left alone.

    Raises:
      UserError: no checkpoint or a damaged one, an array missing, unknown or
        of another size, or a model that is not T5 (umT5, with a prompt).
    """
    path = str(folder)
    arrays = _one_bias(t5x_files.target_arrays(folder), path=path)
    found, split = _sizes(arrays, path=path)
    if config is None:
        config = found
    for name in _TOLD:
        told, got = getattr(config, name), getattr(found, name)
        if told != got:
            raise UserError(
                f"{path}: {name} is {got} by the checkpoint's arrays, "
                f"expected {told}. Give the checkpoint's own sizes."
            )
    table = _table(config, arrays, split=split)
    return tables.assemble(arrays, table, path=path, source=_OWN), config


def _prefix(arrays: Mapping[str, Any], stack: str) -> str | None:
    """Where the scanned layers of a stack are, None where they are apart."""
    for prefix in (f"{stack}/{stack}/", f"{stack}/layers/"):
        if any(name.startswith(prefix) for name in arrays):
            return prefix
    return None


def _one_bias(arrays: Mapping[str, Any], *, path: str) -> dict[str, Any]:
    """Brings the biases [H, L, buckets] of scanned layers to one [H, buckets].

    Raises:
      UserError: they differ from layer to layer, as umT5's do.
    """
    arrays = dict(arrays)
    for stack in ("encoder", "decoder"):
        name = f"{_prefix(arrays, stack)}{_BIAS}"
        if name not in arrays or f"{stack}/{_BIAS}" in arrays:
            continue
        bias = np.asarray(arrays.pop(name))
        if bias.ndim != 3 or not bias.size or (bias != bias[:, :1]).any():
            raise UserError(
                f"{path}: {name!r} {bias.shape} has another bias in each "
                "layer, as umT5; this version reads T5, whose layers share one."
            )
        arrays[f"{stack}/{_BIAS}"] = bias[:, 0]
    return arrays


def _sizes(
    arrays: Mapping[str, Any], *, path: str
) -> tuple[T5Config, dict[str, bool]]:
    """The configuration, and for each stack whether heads have their axis."""

    def shape(name: str, *ranks: int) -> tuple[int, ...]:
        if name not in arrays:
            near = [n for n in sorted(arrays) if n.startswith(name[:8])][:5]
            raise UserError(
                f"{path}: array {name!r} is missing; there are e.g. {near}. "
                "Expected T5's arrays under T5X's names."
            )
        got = tuple(arrays[name].shape)
        if len(got) not in ranks or 0 in got:
            raise UserError(
                f"{path}: array {name!r} has shape {got}, expected "
                f"{' or '.join(map(str, ranks))} axes."
            )
        return got

    layers, split, inner, ffn = {}, {}, {}, {}
    for stack, attention in (("encoder", ""), ("decoder", "self_")):
        prefix = _prefix(arrays, stack)
        scanned = int(prefix is not None)
        first = prefix or f"{stack}/layers_0/"
        query = f"{first}{attention}attention/query/kernel"
        heads = shape(query, 2 + scanned, 3 + scanned)
        layers[stack] = (
            heads[1] if scanned else _count(arrays, stack, path=path)
        )
        split[stack] = len(heads) == 3 + scanned
        inner[stack] = heads[1 + scanned :]
        ffn[stack] = shape(f"{first}mlp/wo/kernel", 2 + scanned)[0]
    vocab_size, width = shape("token_embedder/embedding", 2)
    heads, buckets = shape(f"encoder/{_BIAS}", 2)
    joined = int(np.prod(inner["encoder"], dtype=object))
    if joined % heads or inner["encoder"] not in (
        (joined,),
        (heads, joined // heads),
    ):
        raise UserError(
            f"{path}: the query kernels have heads {inner['encoder']}, the "
            f"relative position bias has {heads}. The arrays are not of one "
            "model."
        )
    gated = any("/mlp/wi_0/" in name for name in arrays)
    return T5Config(
        vocab_size=vocab_size,
        width=width,
        layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        heads=heads,
        head_dim=joined // heads,
        ffn=ffn["encoder"],
        buckets=buckets,
        activation="gelu_new" if gated else "relu",
        gated=gated,
        tied="decoder/logits_dense/kernel" not in arrays,
    ), split


def _count(arrays: Mapping[str, Any], stack: str, *, path: str) -> int:
    """The number of layers that lie apart."""
    found = {
        int(match[2])
        for match in map(_LAYER.match, arrays)
        if match and match[1] == stack
    }
    lost = sorted(set(range(max(found) + 1)) - found)
    if lost:
        raise UserError(
            f"{path}: {stack}/layers_{lost[0]} is missing, and "
            f"{stack}/layers_{max(found)} is there. Copy the checkpoint again."
        )
    return len(found)


def _table(
    config: T5Config, arrays: Mapping[str, Any], *, split: Mapping[str, bool]
) -> tables.Table:
    """Our parameter path -> the arrays it is made of."""
    table = {}
    for path, shape in tables.shapes(config).items():
        stack, _, rest = path.partition("/")
        if not rest.startswith("layers/"):
            table[path] = tables.Leaf(shape, (path,), shape)
            continue
        part = rest.removeprefix("layers/")
        count, *each = shape
        if split[stack] and "attention/" in part:
            each = _with_heads(part, each, config)
        prefix = _prefix(arrays, stack)
        if prefix is None:
            names = tuple(f"{stack}/layers_{i}/{part}" for i in range(count))
            table[path] = tables.Leaf(shape, names, tuple(each))
        else:
            table[path] = tables.Leaf(
                shape,
                (prefix + part,),
                (each[0], count, *each[1:]),
                (1, 0, *range(2, len(each) + 1)),
            )
    return table


def _with_heads(part: str, each: list[int], config: T5Config) -> list[int]:
    """The shape of an attention's kernel with an axis for the heads."""
    heads = [config.heads, config.head_dim]
    module = part.split("/")[1]
    return [*heads, each[1]] if module == "out" else [each[0], *heads]
