"""T5X checkpoints for tests, written by hand from a T5 of ours.

The layout is spelt out here once more, from T5X's `checkpoints.py` and
`examples/{t5,scalable_t5}`, and shares nothing with the reader.
"""

import gzip
import itertools
import json
import pathlib
import zlib
from typing import Any

import flax.linen as nn
import jax
import ml_dtypes
import msgpack
import numpy as np

from panda_jax.models import t5
from panda_jax.models.trees import flatten

CONFIG = t5.T5Config(
    vocab_size=50,
    width=12,
    layers=2,
    decoder_layers=3,
    heads=4,
    head_dim=5,
    ffn=7,
    buckets=6,
    activation="gelu_new",
    gated=True,
    tied=False,
)
CODES = {"float32": "<f4", "float16": "<f2", "bfloat16": "bfloat16"}


def params_of(config: t5.T5Config, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values of every parameter, norms too, by our paths."""
    tree = jax.eval_shape(lambda: t5.init(jax.random.key(0), config))
    rng = np.random.default_rng(seed)
    return {
        path: rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in flatten(nn.meta.unbox(tree)).items()
    }


def t5x_arrays(
    flat: dict[str, np.ndarray],
    config: t5.T5Config,
    *,
    scanned: str | None = None,
    split: bool = False,
) -> dict[str, np.ndarray]:
    """T5X's arrays by path.

    Args:
      flat: our parameters.
      config: their sizes.
      scanned: the name below which layers are stacked on axis 1, with `{}`
        for encoder or decoder; None puts each layer by itself.
      split: whether attention kernels are [D, H, K] and [H, K, D].
    """
    H, K = config.heads, config.head_dim
    arrays = {}
    for path, value in flat.items():
        stack, _, rest = path.partition("/")
        if not rest.startswith("layers/"):
            arrays[path] = value
            continue
        part = rest.removeprefix("layers/")
        if split and "attention/" in part:
            L, rows, columns = value.shape
            shape = (H, K, columns) if "/out/" in part else (rows, H, K)
            value = value.reshape(L, *shape)
        if scanned is None:
            for layer, each in enumerate(value):
                arrays[f"{stack}/layers_{layer}/{part}"] = each
        else:
            name = f"{stack}/{scanned.format(stack)}/{part}"
            arrays[name] = np.moveaxis(value, 0, 1)
    return arrays


def tree_of(flat: dict[str, Any]) -> dict[str, Any]:
    """`{"a/b": x}` -> `{"a": {"b": x}}`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def packed(array: np.ndarray, *, code: int = 1) -> msgpack.ExtType:
    """An array inside the index, as Flax packs it."""
    content = (array.shape, array.dtype.name, array.tobytes())
    return msgpack.ExtType(code, msgpack.packb(content, use_bin_type=True))


def write_zarr(
    folder: pathlib.Path,
    array: np.ndarray,
    *,
    chunks: tuple[int, ...] | None = None,
    compressor: str | None = "gzip",
    zarray: bool = True,
) -> dict[str, Any]:
    """Writes a zarr v2 array by hand; returns its metadata."""
    folder.mkdir(parents=True)
    chunks = chunks or array.shape
    counts = [-(-s // c) for s, c in zip(array.shape, chunks, strict=True)]
    for place in itertools.product(*map(range, counts)):
        # Chunks at the edge are of full size.
        chunk = np.zeros(chunks, array.dtype)
        part = array[
            tuple(
                slice(i * c, (i + 1) * c)
                for i, c in zip(place, chunks, strict=True)
            )
        ]
        chunk[tuple(map(slice, part.shape))] = part
        pack = {
            "gzip": lambda data: gzip.compress(data, 1),
            "zlib": lambda data: zlib.compress(data, 1),
            None: bytes,
        }[compressor]
        (folder / ".".join(map(str, place))).write_bytes(pack(chunk.tobytes()))
    metadata = {
        "chunks": list(chunks),
        "compressor": compressor and {"id": compressor, "level": 1},
        "dtype": CODES[array.dtype.name],
        "shape": list(array.shape),
    }
    if zarray:
        rest = {
            "fill_value": None,
            "filters": None,
            "order": "C",
            "zarr_format": 2,
        }
        (folder / ".zarray").write_text(json.dumps(metadata | rest))
    return metadata


def write_legacy(
    folder: pathlib.Path, arrays: dict[str, np.ndarray]
) -> pathlib.Path:
    """A legacy checkpoint that has each thing that one may have.

    Norms and biases lie in the index; kernels and prompts are zarr, turn and
    turn about of one chunk and of several, with gzip, with zlib and raw, with
    `.zarray` and without.
    """
    leaves: dict[str, Any] = {}
    kinds = itertools.cycle(
        itertools.product(("gzip", "zlib", None), (True, False), (1, 3))
    )
    for path, array in arrays.items():
        if not path.endswith(("/kernel", "/embedding", "/prompt/prompt")):
            leaves[path] = packed(array)
            continue
        compressor, zarray, parts = next(kinds)
        chunks = tuple(-(-size // parts) for size in array.shape)
        place = f"target.{path.replace('/', '.')}"
        leaves[path] = specification(
            place,
            write_zarr(
                folder / place,
                array,
                chunks=chunks,
                compressor=compressor,
                zarray=zarray,
            ),
        )
    write_index(folder, tree_of(leaves))
    return folder


def specification(place: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """How the index says that an array lies in the folder `place`."""
    return {
        "driver": "zarr",
        "kvstore": {"driver": "gfile", "path": place},
        "metadata": metadata,
    }


def write_index(folder: pathlib.Path, target: dict[str, Any]) -> None:
    """The index, with an optimizer's state that nobody should read."""
    folder.mkdir(parents=True, exist_ok=True)
    moments = {"m": packed(np.full(3, np.nan, np.float32)), "v": None}
    state = {"step": packed(np.array(3, np.int32)), "param_states": moments}
    index = {
        "version": 3,
        "optimizer": {"state": state, "target": target},
    }
    (folder / "checkpoint").write_bytes(msgpack.packb(index))


def rounded(flat: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The parameters in a narrower type."""
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    return {path: value.astype(dtype) for path, value in flat.items()}
