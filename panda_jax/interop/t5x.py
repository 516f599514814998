"""T5 from T5X checkpoints, and prompts beside it, read without T5X.

Our parameters have T5X's names; what differs is where the layers are.  T5X
keeps them apart (`encoder/layers_0/...`), or scanned on axis 1 of one array
(`encoder/encoder/...`, of `examples/scalable_t5`), where heads have an axis of
their own and each layer has a relative position bias.

Of a run of google-research/prompt-tuning the checkpoint also holds the prompt,
`encoder/prompt/prompt/prompt` [P, D].  What it trains is what has `prompt` for
a part of its path; all else was frozen and is the backbone.
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
_EMBEDDING = "token_embedder/embedding"
# Vectors before a stack's input. They are a module of prompt-tuning's inside of
# another inside of the stack; its first releases had one fewer.
_PROMPT = re.compile(r"(encoder|decoder)(?:/prompt)+")
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
      checkpoint is left alone, and so is a prompt.

    Raises:
      UserError: no checkpoint or a damaged one, an array missing, unknown or
        of another size, or a model that is not T5 (umT5).
    """
    path = str(folder)
    arrays, _ = _parted(folder)
    arrays = _one_bias(arrays, path=path)
    found, split = _sizes(arrays, path=path)
    if config is None:
        config = found
    fix = "Give the checkpoint's own sizes."
    _check_sizes(found, config, path=path, fix=fix)
    table = _table(config, arrays, split=split)
    return tables.assemble(arrays, table, path=path, source=_OWN), config


def read_prompt(folder: pathlib.Path) -> tuple[np.ndarray, str]:
    """The prompt in a checkpoint of a prompt-tuning run.

    Args:
      folder: as in `load_t5x`.

    Returns:
      Its vectors [P, D], fp32, and the stack before whose input they stand:
      `"encoder"` or, of a model that has a decoder alone, `"decoder"`.

    Raises:
      UserError: no checkpoint or a damaged one; or it holds no prompt, several
        or one of another form, by name.
    """
    path = str(folder)
    weights, trained = _parted(folder)
    if not trained:
        raise UserError(
            f"{path} holds no prompt, expected an array [P, D] such as "
            "'encoder/prompt/prompt/prompt' beside the weights. A checkpoint "
            "of weights alone is a backbone (--backbone=DIR)."
        )
    name = min(trained)
    match = _PROMPT.fullmatch(name)
    if match is None or len(trained) > 1:
        raise UserError(
            f"{path} holds the prompts {sorted(trained)[:5]}, expected one "
            "array such as 'encoder/prompt/prompt/prompt': a prompt for both "
            "stacks, each layer or several tasks is not vectors before one "
            "input."
        )
    if match[1] == "decoder" and any(n.startswith("encoder/") for n in weights):
        raise UserError(
            f"{path} holds {name!r}, which stands before the decoder's input; "
            "where there is an encoder, panda_jax puts a shallow prompt before "
            "the encoder's input alone."
        )
    array = trained[name]
    width = tuple(weights.get(_EMBEDDING, array).shape)[-1:]
    shape = tuple(array.shape)
    if len(shape) != 2 or 0 in shape or shape[1:] != width:
        raise UserError(
            f"{path}: array {name!r} has shape {shape}, expected [P, D] with "
            f"the width {width} of the embeddings."
        )
    vectors = np.asarray(array).astype(np.float32)
    if not np.isfinite(vectors).all():
        raise UserError(f"{path}: array {name!r} holds NaN or Inf.")
    return vectors, match[1]


def check_weights(
    folder: pathlib.Path, config: T5Config, params: Params
) -> None:
    """Refuses a backbone whose weights are not those beside a prompt.

    Args:
      folder: of the checkpoint.
      config: of the backbone.
      params: the backbone's, fp32 or in a narrower type, as the checkpoint's.

    Raises:
      UserError: an array is missing, or of another size or with other
        numbers, by name.
    """
    path = str(folder)
    weights, _ = _parted(folder)
    if not weights:
        return
    weights = _one_bias(weights, path=path)
    found, split = _sizes(weights, path=path)
    fix = "The prompt was trained on another backbone (--backbone)."
    _check_sizes(found, config, path=path, fix=fix)
    for ours, leaf in _table(config, weights, split=split).items():
        # One at a time: the whole may be as large as the memory.
        for name, mine in tables.disassemble(params, {ours: leaf}).items():
            theirs = np.asarray(weights[name]) if name in weights else None
            if theirs is None or not _same(theirs, mine):
                raise UserError(
                    f"{path}: array {name!r} differs from the backbone's. {fix}"
                )


def _same(theirs: np.ndarray, ours: np.ndarray) -> bool:
    """Whether arrays hold the same numbers, in the narrower of their types."""
    narrow = min(theirs.dtype, ours.dtype, key=lambda dtype: dtype.itemsize)
    return np.array_equal(theirs.astype(narrow), ours.astype(narrow))


def _parted(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of the backbone, and those that prompt-tuning trained."""
    arrays = t5x_files.target_arrays(folder)
    trained = {n: a for n, a in arrays.items() if "prompt" in n.split("/")}
    return {n: a for n, a in arrays.items() if n not in trained}, trained


def _check_sizes(
    found: T5Config, told: T5Config, *, path: str, fix: str
) -> None:
    for name in _TOLD:
        expected, got = getattr(told, name), getattr(found, name)
        if expected != got:
            raise UserError(
                f"{path}: {name} is {got} by the checkpoint's arrays, "
                f"expected {expected}. {fix}"
            )


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
    vocab_size, width = shape(_EMBEDDING, 2)
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
