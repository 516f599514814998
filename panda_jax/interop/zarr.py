"""Zarr v2 arrays of checkpoints, read with tensorstore and checked before.

tensorstore reads a chunk that is missing as zeros, believes any shape, and
needs a `.zarray`.  Here every chunk must be there, shapes are known before
anything is read, and a `.zarray` that was lost may be replaced.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from panda_jax.errors import UserError
from panda_jax.interop.tensors import Stored
from panda_jax.io.files import parse_json

DTYPES = {"<f4": "float32", "<f2": "float16", "bfloat16": "bfloat16"}
_COMPRESSORS = ("gzip", "zlib", "zstd")
_METADATA = ".zarray"
_MOST_METADATA = 1 << 16
_FIX = "Copy the checkpoint again."

# What tensorstore raises for one bad store or another.
_DAMAGED = (
    ArithmeticError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def open_array(
    kvstore: dict[str, Any],
    *,
    name: str,
    metadata: Mapping[str, Any] | None = None,
) -> Stored:
    """An array, checked but for its values, which are read when asked for.

    Args:
      kvstore: tensorstore's specification of where it lies; a trusted one.
      name: of the array, for messages.
      metadata: what else is known of it, in the form of a `.zarray`: is used
        where that is missing and may not contradict it.

    Raises:
      UserError: metadata that are missing, contradictory or of an array that
        no checkpoint holds, or a chunk too few or too many.
    """
    import tensorstore as ts

    try:
        store = ts.KvStore.open(kvstore).result()
        keys = {key.decode() for key in store.list().result()}
        raw = store.read(_METADATA).result().value if _METADATA in keys else b""
    except _DAMAGED as error:
        raise _damaged(name, error) from None
    found = _parsed(raw, name=name) if _METADATA in keys else None
    if found is None and metadata is None:
        raise UserError(f"Array {name!r} has no {_METADATA}. {_FIX}")
    told = metadata or {}
    checked = _checked(told if found is None else found, name=name)
    if metadata is not None and told.get("shape") != checked["shape"]:
        raise UserError(
            f"Array {name!r} has shape {checked['shape']} in its {_METADATA}, "
            f"{str(told.get('shape'))[:80]} in the index. {_FIX}"
        )
    _check_chunks(keys, checked, name=name)

    def read() -> np.ndarray:
        spec = {"driver": "zarr", "kvstore": kvstore, "metadata": checked}
        try:
            opened = ts.open(spec, open=True, read=True, assume_metadata=True)
            return np.asarray(opened.result().read().result())
        except _DAMAGED as error:
            raise _damaged(name, error) from None

    return Stored(tuple(checked["shape"]), DTYPES[checked["dtype"]], read)


def _damaged(name: str, error: BaseException) -> UserError:
    line = " ".join(str(error).split())[:300]
    return UserError(f"Array {name!r} is damaged ({line}). {_FIX}")


def _parsed(raw: bytes, *, name: str) -> dict[str, Any]:
    try:
        if len(raw) > _MOST_METADATA:
            raise ValueError(f"{len(raw)} bytes")
        value = parse_json(raw.decode())
    except ValueError as error:
        raise _damaged(f"{name}/{_METADATA}", error) from None
    if not isinstance(value, dict):
        raise _damaged(f"{name}/{_METADATA}", ValueError("no JSON object"))
    return value


def _checked(raw: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """The metadata of an array as T5X and orbax write them, or an error."""
    compressor = raw.get("compressor")
    shape: Any = raw.get("shape")
    chunks: Any = raw.get("chunks")
    fits = {
        "zarr_format": raw.get("zarr_format", 2) == 2,
        "order": raw.get("order", "C") == "C",
        "filters": raw.get("filters") is None,
        "dimension_separator": raw.get("dimension_separator", ".") == ".",
        "compressor": compressor is None
        or isinstance(compressor, dict)
        and compressor.get("id") in _COMPRESSORS,
        "dtype": isinstance(raw.get("dtype"), str) and raw["dtype"] in DTYPES,
        "shape": _sizes(shape),
        "chunks": _sizes(chunks)
        and _sizes(shape)
        and len(chunks) == len(shape)
        # Larger chunks than arrays are legal, and nobody writes them.
        and all(c <= s for c, s in zip(chunks, shape, strict=True)),
    }
    wrong = [key for key, right in fits.items() if not right]
    if wrong:
        got = ", ".join(f"{key} {str(raw.get(key))[:80]}" for key in wrong)
        raise UserError(
            f"Array {name!r} has {got} in its metadata, expected a zarr v2 "
            f"array of {', '.join(DTYPES)} as T5X writes it. {_FIX}"
        )
    return {
        "zarr_format": 2,
        "order": "C",
        "filters": None,
        "fill_value": None,
        "dimension_separator": ".",
        "compressor": compressor and {"id": compressor["id"]},
        "dtype": raw["dtype"],
        "shape": list(shape),
        "chunks": list(chunks),
    }


def _sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 8
        and all(type(size) is int and 0 < size < 1 << 40 for size in value)
    )


def _check_chunks(
    keys: set[str], metadata: Mapping[str, Any], *, name: str
) -> None:
    """Every chunk of the shape is there, and no other."""
    counts = [
        math.ceil(size / chunk)
        for size, chunk in zip(
            metadata["shape"], metadata["chunks"], strict=True
        )
    ]
    held = {key for key in keys if not key.startswith(".z")}
    expected = math.prod(counts)
    if len(held) == expected:
        places = itertools.product(*map(range, counts))
        wanted = {".".join(map(str, place)) or "0" for place in places}
        if wanted == held:
            return
    raise UserError(
        f"Array {name!r} has {len(held)} chunks, expected {expected} with "
        f"their own names for shape {metadata['shape']} in chunks of "
        f"{metadata['chunks']}. {_FIX}"
    )
