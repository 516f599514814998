"""NumPy's files, read with distrust: their headers may claim anything.

NumPy makes an array of the size that a header says before it looks at the
data, and raises a dozen kinds of errors. Here an array is as large as its data
and everything that is wrong is a `ValueError`.
"""

import contextlib
import io
import math
import struct
import tokenize
import zipfile
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from panda_jax.files import PathLike

_MAGIC = b"\x93NUMPY"
# Version -> how many bytes the length of the header has, and what reads it.
_VERSIONS = {
    (1, 0): (2, npy_format.read_array_header_1_0),
    (2, 0): (4, npy_format.read_array_header_2_0),
}
# NumPy reads no longer header of a file that it does not trust.
_MOST_HEADER = 10_000
# What NumPy and zipfile raise for one bad file or another.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
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
        version = tuple(start[len(_MAGIC) :])
        if not start.startswith(_MAGIC) or len(version) < 2:
            raise ValueError("it is no .npy file")
        if version not in _VERSIONS:
            raise ValueError(
                f"its .npy version is {version}, expected (1, 0) or (2, 0)"
            )
        digits, parse = _VERSIONS[version]
        length = file.read(digits)
        size = int.from_bytes(length, "little")
        if size > _MOST_HEADER:
            raise ValueError(
                f"its header has {size} bytes, expected at most {_MOST_HEADER}"
            )
        shape, fortran_order, dtype = parse(
            io.BytesIO(length + file.read(size))
        )
        if any(axis < 0 for axis in shape):
            raise ValueError(f"its array has the shape {shape}")
        return shape, fortran_order, dtype


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
        if len(data) != math.prod(shape) * dtype.itemsize or len(data) > size:
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
