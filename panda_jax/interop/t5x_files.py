"""The arrays in a T5X checkpoint, legacy or orbax, found without T5X.

Legacy: a msgpack file `checkpoint`, in which small arrays lie themselves and
large ones as tensorstore specifications of zarr folders beside it.  Orbax: zarr
arrays named after their place in the tree, each in a folder or all in one
OCDBT store, and the tree in `_METADATA` or, once, in a `checkpoint` like the
legacy one.  Both hold the weights under `target`.
"""

import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgpack
import numpy as np

from panda_jax.errors import UserError
from panda_jax.interop import zarr
from panda_jax.interop.folders import inside, json_inside, stored_bytes
from panda_jax.interop.tables import FLOATS
from panda_jax.interop.tensors import Stored

LEGACY, ORBAX = "checkpoint", "_METADATA"
_OCDBT = "manifest.ocdbt"
_STEP = re.compile(r"checkpoint_\d+")
_PLACEHOLDER = "PLACEHOLDER://"
# Where the weights lie: of T5X now, of its optimizers, of its first orbax.
_TARGETS = (("target",), ("optimizer", "target"), ("_optimizer", "target"))
# Flax's msgpack extensions: an array, and a scalar in the same form.
_ARRAY, _SCALAR = 1, 3
_LIMITS = {
    "max_array_len": 64,
    "max_map_len": 1 << 16,
    "max_str_len": 1 << 16,
}
# Weights hardly become smaller: those that were bf16 once by half. What does is
# made to fill memory, or so small that it does not matter.
_RATIO, _SLACK = 4, 1 << 26
# Maps, lists and what is in them: the index of a T5-XXL has a tenth of it.
# Python takes up to a hundred bytes for one that the file spends a byte on.
_MOST_VALUES = 1 << 19
# Of orbax's metadata: a kilobyte for each array, the optimizer's too.
_MOST_ORBAX = 1 << 24


def find(path: pathlib.Path) -> pathlib.Path | None:
    """The folder with the arrays: `path`, its `checkpoint_N`, its `state`.

    None where there is no checkpoint.

    Raises:
      UserError: `path` holds several checkpoints.
    """
    steps = [path]
    if path.is_dir():
        steps += [p for p in sorted(path.iterdir()) if _STEP.fullmatch(p.name)]
    # Orbax's manager puts the items of a checkpoint into folders.
    found = [
        folder
        for step in steps
        for folder in (step, step / "state", step / "default")
        if any((folder / name).is_file() for name in (LEGACY, ORBAX))
    ]
    if len(found) > 1:
        raise UserError(
            f"{str(path)!r} holds {len(found)} checkpoints. Give the folder of "
            f"one, e.g. {str(found[-1])!r}."
        )
    return found[0] if found else None


def target_arrays(path: pathlib.Path) -> dict[str, Stored | np.ndarray]:
    """The arrays under `target`, by path, read when asked for.

    Names, types, shapes and chunks are checked here, and that the arrays are
    not larger than the files can hold.

    Args:
      path: of the checkpoint, or of a folder with one.

    Raises:
      UserError: no checkpoint, a damaged one, or one that names what lies
        outside its folder.
    """
    folder = find(path)
    if folder is None:
        raise UserError(
            f"{str(path)!r} is no T5X checkpoint: expected a folder with a "
            f"file {LEGACY!r} or {ORBAX!r}, or the folder above it."
        )
    folder = folder.resolve()
    held = stored_bytes(folder)
    arrays = (_orbax if (folder / ORBAX).is_file() else _legacy)(folder)
    claimed = sum(
        math.prod(array.shape) * (2 if "16" in str(array.dtype) else 4)
        for array in arrays.values()
    )
    if claimed > _RATIO * held + _SLACK:
        raise UserError(
            f"{str(folder)!r} claims to hold {claimed} bytes of weights in "
            f"{held} bytes of files. Do not use this checkpoint."
        )
    return arrays


def _legacy(folder: pathlib.Path) -> dict[str, Stored | np.ndarray]:
    index = folder / LEGACY
    values = 0

    def counted(found: dict | list) -> dict | list:
        nonlocal values
        values += len(found)
        if values > _MOST_VALUES:
            raise UserError(
                f"holds more than {_MOST_VALUES} values, expected the index of "
                "a checkpoint. Do not use it."
            )
        return found

    try:
        tree = msgpack.unpackb(
            inside(folder, LEGACY).read_bytes(),
            ext_hook=_extension,
            object_hook=counted,
            list_hook=counted,
            **_LIMITS,
        )
    except UserError as error:
        raise UserError(f"{str(index)!r}: {error}") from None
    except (ValueError, MemoryError, OSError, RecursionError) as error:
        raise UserError(
            f"{str(index)!r} is no msgpack index of a T5X checkpoint "
            f"({type(error).__name__}: {error}). Copy it again."
        ) from None
    arrays, used = {}, set()
    for name, value in _flat(_target(tree, path=str(index))):
        if name in arrays:
            raise UserError(f"{str(index)!r} holds {name!r} twice.")
        if isinstance(value, _Packed):
            arrays[name] = value.array(name)
            continue
        place, metadata = _place(value, name)
        if place in used:
            raise UserError(f"{str(index)!r} uses the folder {place!r} twice.")
        used.add(place)
        arrays[name] = zarr.open_array(
            _kvstore(folder, place), name=name, metadata=metadata
        )
    return arrays


def _orbax(folder: pathlib.Path) -> dict[str, Stored | np.ndarray]:
    path = str(folder / ORBAX)
    raw = json_inside(
        folder, ORBAX, what="checkpoint's metadata", most=_MOST_ORBAX
    )
    tree = raw.get("tree_metadata")
    if not isinstance(tree, dict) or raw.get("use_zarr3", False) is not False:
        raise UserError(
            f"{path!r} has use_zarr3 {raw.get('use_zarr3')!r} and "
            f"tree_metadata of type {type(tree).__name__}, expected zarr v2 "
            "and an object. Save the checkpoint without use_zarr3."
        )
    arrays = {}
    for entry in tree.values():
        keys = _keys(entry, path=path)
        prefix = next((t for t in _TARGETS if keys[: len(t)] == t), None)
        if prefix is None:
            continue
        name = "/".join(keys[len(prefix) :])
        if name in arrays:
            raise UserError(f"{path!r} holds {name!r} twice.")
        kvstore = _kvstore(folder, ".".join(keys))
        arrays[name] = zarr.open_array(kvstore, name=name)
    return arrays


def _keys(entry: Any, *, path: str) -> tuple[str, ...]:
    """The place in the tree of one entry of orbax's metadata."""
    parts = entry.get("key_metadata") if isinstance(entry, dict) else None
    keys = tuple(
        part.get("key") if isinstance(part, dict) else None
        for part in (parts if isinstance(parts, list) else [None])
    )
    if not all(isinstance(k, str) and re.fullmatch(r"\w+", k) for k in keys):
        raise UserError(
            f"{path!r} has the key {str(keys)[:200]}, expected plain names. "
            "Copy the checkpoint again."
        )
    return keys  # pyright: ignore[reportReturnType]


def _target(tree: Any, *, path: str) -> dict[str, Any]:
    for keys in _TARGETS:
        found = tree
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict):
            return found
    raise UserError(
        f"{path!r} holds no weights: expected 'target' or 'optimizer/target' "
        "in it, as T5X writes."
    )


def _flat(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Path and value of every leaf; a specification of an array is one."""
    todo = [("", tree)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, dict) and not value.keys() >= {
            "driver",
            "kvstore",
        }:
            todo += [(f"{path}/{key}", child) for key, child in value.items()]
        else:
            yield path[1:], value


def _place(value: Any, name: str) -> tuple[str, dict[str, Any] | None]:
    """The folder of an array and what the index says of it."""
    if isinstance(value, str) and value.startswith(_PLACEHOLDER):
        return value.removeprefix(_PLACEHOLDER), None
    if not isinstance(value, dict):
        raise UserError(
            f"{name!r} in the index is of type {type(value).__name__}, "
            "expected an array. Copy the checkpoint again."
        )
    kvstore, metadata = value["kvstore"], value.get("metadata")
    kvstore = kvstore if isinstance(kvstore, dict) else {}
    place = kvstore.get("path", value.get("path"))
    drivers = (value["driver"], kvstore.get("driver"))
    if (
        not isinstance(place, str)
        or not isinstance(metadata, dict)
        or drivers[0] != "zarr"
        or drivers[1] not in ("file", "gfile", "gcs")
    ):
        raise UserError(
            f"{name!r} in the index is {_shown(value)}, expected a zarr "
            "folder beside it. Copy the checkpoint again."
        )
    types = {told: code for code, told in zarr.DTYPES.items()}
    dtype = metadata.get("dtype", types.get(str(value.get("dtype"))))
    return place.rstrip("/"), metadata | {"dtype": dtype}


def _shown(value: Any) -> str:
    try:
        return str(value)[:200]
    except RecursionError:
        return "nested without end"


def _kvstore(folder: pathlib.Path, place: str) -> dict[str, Any]:
    """Where tensorstore finds an array of this folder."""
    if (folder / _OCDBT).is_file():
        base = {"driver": "file", "path": f"{folder}/"}
        return {"driver": "ocdbt", "base": base, "path": f"{place}/"}
    return {"driver": "file", "path": f"{inside(folder, place)}/"}


class _Packed(bytes):
    """An array inside the index, not unpacked yet."""

    def array(self, name: str) -> np.ndarray:
        """Unpacks (shape, type, bytes); `UserError` for anything else."""
        try:
            shape, dtype, data = msgpack.unpackb(
                self, list_hook=_shape_alone, **(_LIMITS | {"max_map_len": 0})
            )
            if dtype not in FLOATS or math.prod(shape) < 0:
                raise ValueError(f"type {dtype}, shape {shape}")
            return np.frombuffer(data, np.dtype(dtype)).reshape(shape)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise UserError(
                f"{name!r} in the index is no array of {', '.join(FLOATS)} "
                f"({str(error)[:200]}). Copy the checkpoint again."
            ) from None


def _shape_alone(found: list) -> list:
    """Refuses lists in lists, but for the first of three, an array's shape."""
    inner = [isinstance(each, list) for each in found]
    if any(inner) and inner != [True, False, False]:
        raise ValueError("lists in lists")
    return found


def _extension(code: int, data: bytes) -> _Packed:
    if code not in (_ARRAY, _SCALAR):
        raise UserError(
            f"holds an object of msgpack type {code}, expected arrays only. "
            "Do not use this checkpoint."
        )
    return _Packed(data)
