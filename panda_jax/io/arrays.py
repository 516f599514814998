"""NumPy's files, read with distrust: their headers may claim anything.

NumPy makes an array of the size that a header says before it looks at the
data, raises a dozen kinds of errors, and parses headers as Python, whose parser
fails now and then when several threads use it (CPython 3.11, "recursion depth
mismatch"). Here an array is as large as its data, and everything that is wrong
is a `ValueError`.
"""

import contextlib
import io
import math
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import IO

import numpy as np

from panda_jax.io.files import PathLike

_MAGIC = b"\x93NUMPY"
# Version -> how many bytes the length of the header has.
_VERSIONS = {(1, 0): 2, (2, 0): 4}
# NumPy reads no longer header of a file that it does not trust.
_MOST_HEADER = 10_000
_ITEM = r"'(descr|fortran_order|shape)' *: *('[^',]*'|True|False|\([^()]*\))"
_ITEMS = re.compile(rf" *\{{ *{_ITEM} *, *{_ITEM} *, *{_ITEM} *,? *\}}\s*")
# Python 2 wrote an L behind each.
_SHAPE = re.compile(r"\(\)|\((-?\d{1,20}L?, *)+(-?\d{1,20}L?)?\)")
# What NumPy and zipfile raise for one bad file or another.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


def header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of a `.npy` file's array.

    The file is read up to where the data begins.

    Raises:
      ValueError: it is no such file.
    """
    with _damage():
        start = file.read(len(_MAGIC) + 2)
        if not start.startswith(_MAGIC) or len(start) < len(_MAGIC) + 2:
            raise ValueError("it is no .npy file")
        version = start[-2], start[-1]
        if version not in _VERSIONS:
            raise ValueError(
                f"its .npy version is {version}, expected (1, 0) or (2, 0)"
            )
        size = int.from_bytes(file.read(_VERSIONS[version]), "little")
        if size > _MOST_HEADER:
            raise ValueError(
                f"its header has {size} bytes, expected at most {_MOST_HEADER}"
            )
        return _parsed(file.read(size).decode("latin-1"))


def _parsed(text: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """A header's text, which is a Python dictionary as NumPy writes it."""
    found = _ITEMS.fullmatch(text)
    said = found.groups() if found else ()
    items = dict(zip(said[::2], said[1::2], strict=True))
    kind, shape = items.get("descr", ""), items.get("shape", "")
    order = items.get("fortran_order")
    if (
        order not in ("True", "False")
        or not kind.startswith("'")
        or not _SHAPE.fullmatch(shape)
    ):
        raise ValueError(
            "its header is no plain array's, expected floats or integers"
        )
    axes = tuple(int(size) for size in re.findall(r"-?\d+", shape))
    return axes, order == "True", np.dtype(kind.strip("'"))


def read(file: IO[bytes], size: int) -> np.ndarray:
    """The read-only array of a `.npy` file of `size` bytes.

    Raises:
      ValueError: it is damaged, or holds Python objects.
    """
    with _damage():
        shape, fortran_order, dtype = header(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        data = file.read()
        bytes_ = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or not len(data) == bytes_ <= size:
            raise ValueError(
                f"{len(data)} bytes of data for an array of {dtype} and shape "
                f"{shape}"
            )
        array = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
        return array.reshape(shape, order="F" if fortran_order else "C")


def read_npy(path: PathLike) -> np.ndarray:
    """The read-only array of a `.npy` file.

    Raises:
      OSError: it cannot be read.
      ValueError: as `read`.
    """
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return read(file, size)


def read_npz(path: PathLike) -> dict[str, np.ndarray]:
    """Name -> read-only array of a `.npz` file that is not compressed.

    Raises:
      OSError: it cannot be read.
      ValueError: it is damaged, compressed, or holds other than arrays.
    """
    with open(path, "rb") as file, _damage():
        size = file.seek(0, io.SEEK_END)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            # Records that overlap would be read to more than there is.
            if sum(entry.file_size for entry in entries) > size or any(
                entry.compress_type != zipfile.ZIP_STORED for entry in entries
            ):
                raise ValueError("it is compressed, or its records overlap")
            arrays = {}
            for entry in entries:
                with archive.open(entry) as part:
                    name = entry.filename.removesuffix(".npy")
                    arrays[name] = read(part, entry.file_size)
            return arrays


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Turns what a bad file raises into a `ValueError` of one line."""
    try:
        yield
    except _DAMAGED as error:
        what = str(error).partition("\n")[0][:200]
        raise ValueError(what or type(error).__name__) from None
