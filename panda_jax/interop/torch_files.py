"""Tensors from files of `torch.save`, without torch and without unpickling.

Such a file is a zip archive of uncompressed records: `NAME/data.pkl`, a
pickle that says which tensors there are, and their numbers in
`NAME/data/KEY`.  The pickle is read by `torch_pickle`, which can call nothing.
"""

import math
import pathlib
import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import ml_dtypes
import numpy as np

from panda_jax.errors import UserError
from panda_jax.interop import torch_pickle
from panda_jax.interop.tensors import Stored
from panda_jax.interop.torch_pickle import Tensor
from panda_jax.io.files import PathLike

_ZIP = b"PK\x03\x04"
# The number with which files from before torch 1.6 begin, pickled.
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# A tensor takes about 100 bytes of pickle; models have thousands at most.
_MAX_PICKLE = 1 << 20
_MAX_NODES, _MAX_DEPTH, _MAX_AXES = 100_000, 8, 16
_DAMAGED = (
    zipfile.BadZipFile,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)


def read(path: PathLike) -> dict[str, np.ndarray]:
    """All tensors of a file of `torch.save`.

    Args:
      path: of the file: a tensor, a state dictionary, or a checkpoint with
        such dictionaries inside; what is no tensor is left out.

    Returns:
      Name -> read-only array of the tensor's own type (bfloat16 by ml_dtypes),
      with "/" between the names of nested dictionaries ("model/bias") and the
      numbers of list items.  A file that is one tensor has the name "".

    Raises:
      UserError: there is no such file, it is damaged or of another format, or
        its pickle asks for more than tensors.  Nothing is executed either way,
        and little more memory taken than the file has bytes.
    """
    return _refusing(pathlib.Path(path), _read)


def header(path: pathlib.Path) -> dict[str, Stored]:
    """As `read`, but no numbers are read before an array is asked for.

    Raises:
      UserError: as `read`; what is wrong with a tensor when it is asked for.
    """

    archive, tensors = _refusing(path, _opened)

    def stored(name: str, tensor: Tensor) -> Stored:
        def one(_: pathlib.Path) -> np.ndarray:
            data = _storages(archive, [tensor])
            return _array(name, tensor, data[tensor.storage.key])

        shape = tensor.shape if _naturals(tensor.shape) else ()
        return Stored(shape, tensor.storage.dtype, lambda: _refusing(path, one))

    return {name: stored(name, tensor) for name, tensor in tensors.items()}


Found = TypeVar("Found")


def _refusing(
    path: pathlib.Path, reader: Callable[[pathlib.Path], Found]
) -> Found:
    """What a reader makes of a file; its errors name the file."""
    try:
        return reader(path)
    except UserError as error:
        reason = str(error)
    except _DAMAGED as error:
        what = str(error).partition("\n")[0][:200]
        reason = f"it is damaged ({what}); copy it again from its source"
    raise UserError(f"The torch file {str(path)!r} is refused: {reason}.")


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    archive, tensors = _opened(path)
    with archive.file:
        storages = _storages(archive, tensors.values())
    return {
        name: _array(name, tensor, storages[tensor.storage.key])
        for name, tensor in tensors.items()
    }


class _Archive(NamedTuple):
    """An open file; it is shut with the last of what reads from it."""

    file: zipfile.ZipFile
    records: dict[str, zipfile.ZipInfo]

    def read(self, name: str) -> bytes:
        return self.file.read(self.records[name])


def _opened(path: pathlib.Path) -> tuple[_Archive, dict[str, Tensor]]:
    """A file, and what tensors are in it; their numbers are not read."""
    if not path.is_file():
        raise UserError("there is no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
    if start == _LEGACY:
        raise UserError(
            "it is in the format from before torch 1.6; load it with torch "
            "and save it again"
        )
    if not start.startswith(_ZIP):
        raise UserError("it is no archive of torch.save")
    opened = zipfile.ZipFile(path)
    archive = _Archive(opened, _records(opened, size))
    if "byteorder" in archive.records:
        order = archive.read("byteorder")
        if order.strip() != b"little":
            raise UserError(
                f"its byte order is {order[:20]!r}, expected b'little'; "
                "save it again on a little-endian machine"
            )
    pickle_size = archive.records["data.pkl"].file_size
    if pickle_size > _MAX_PICKLE:
        raise UserError(
            f"its pickle has {pickle_size} bytes, expected at most "
            f"{_MAX_PICKLE}"
        )
    return archive, _tensors(torch_pickle.load(archive.read("data.pkl")))


def _storages(archive: _Archive, tensors: Iterable[Tensor]) -> dict[str, bytes]:
    """The bytes of each storage that these tensors are views of."""
    storages = {tensor.storage.key: b"" for tensor in tensors}
    for key in storages:
        # A key is never a path: it only ever names a record.
        if not re.fullmatch(r"\d+", key) or f"data/{key}" not in (
            archive.records
        ):
            raise UserError(f"it has no record for the storage {key!r}")
        storages[key] = archive.read(f"data/{key}")
    return storages


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Record name, without the archive's folder, -> entry."""
    entries = archive.infolist()
    folders = {entry.filename.partition("/")[0] for entry in entries}
    records = {e.filename.partition("/")[2]: e for e in entries}
    if len(folders) != 1 or "data.pkl" not in records:
        raise UserError("it is no archive of torch.save: it has no data.pkl")
    if len(records) != len(entries):
        raise UserError("two of its records have the same name")
    for name, entry in records.items():
        if {"", ".", ".."} & set(entry.filename.split("/")):
            raise UserError(f"its record {entry.filename!r} is a path")
        packed = entry.compress_type != zipfile.ZIP_STORED
        if packed or entry.compress_size != entry.file_size:
            raise UserError(f"its record {name!r} is compressed")
    # Records that overlap would be read to more bytes than there are.
    total = sum(entry.file_size for entry in entries)
    if total > size:
        raise UserError(f"its {size} bytes cannot hold records of {total}")
    return records


def _tensors(value: Any) -> dict[str, Tensor]:
    """Path name -> tensor, of all that the value holds."""
    found: dict[str, Tensor] = {}
    todo: list[tuple[tuple[str, ...], Any]] = [((), value)]
    nodes = 0
    while todo:
        path, value = todo.pop()
        nodes += 1
        # One list may stand in many places, also in itself.
        if nodes > _MAX_NODES or len(path) > _MAX_DEPTH:
            raise UserError(
                "its dictionaries are nested too deeply, or in themselves"
            )
        if isinstance(value, Tensor):
            name = "/".join(path)
            if name in found:
                raise UserError(f"it has two tensors of the name {name!r}")
            found[name] = value
        elif isinstance(value, dict | list | tuple):
            pairs = (
                value.items() if isinstance(value, dict) else enumerate(value)
            )
            # The rest is numbers, often many: lists of parameters' ids.
            inner = [
                ((*path, str(key)), item)
                for key, item in pairs
                if isinstance(item, Tensor | dict | list | tuple)
            ]
            todo += reversed(inner)
    if not found:
        raise UserError("it holds no tensors")
    return found


def _array(name: str, tensor: Tensor, data: bytes) -> np.ndarray:
    """The view that a tensor is of its storage's bytes."""
    storage, offset = tensor.storage, tensor.offset
    shape, strides = tensor.shape, tensor.strides
    dtype = np.dtype(getattr(ml_dtypes, storage.dtype, storage.dtype))
    if len(data) != storage.size * dtype.itemsize:
        raise UserError(
            f"the storage of tensor {name!r} has {len(data)} bytes, expected "
            f"{storage.size} numbers of type {storage.dtype}"
        )
    if not (
        _naturals((offset,))
        and _naturals(shape)
        and _naturals(strides)
        and len(shape) == len(strides) <= _MAX_AXES
    ):
        raise UserError(
            f"tensor {name!r} has the shape {_short(shape)} and strides "
            f"{_short(strides)}, expected two tuples of integers"
        )
    flat, count = np.frombuffer(data, dtype), math.prod(shape)
    if not count:
        return flat[:0].reshape(shape)
    last = offset + sum(
        (n - 1) * step for n, step in zip(shape, strides, strict=True)
    )
    # A view may repeat numbers, and so be larger than any memory.
    if last >= storage.size or count > storage.size:
        raise UserError(
            f"tensor {name!r} of shape {_short(shape)}, strides "
            f"{_short(strides)} and offset {offset} reaches out of its "
            f"storage of {storage.size} numbers"
        )
    # The stride of an axis of length 1 is never used, and may be anything.
    jumps = [
        step * dtype.itemsize if n > 1 else 0
        for n, step in zip(shape, strides, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(
        flat[offset:], shape, jumps, writeable=False
    )


def _naturals(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        type(item) is int and item >= 0 for item in value
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
