"""Safetensors files, read without torch and without trusting them."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from panda_jax.errors import StorageError, UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# What the library, or NumPy behind it, raises for one bad file or another.
_DAMAGED = (
    safetensors.SafetensorError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
)
# The format's names of the types that weights come in.
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array that is read when NumPy asks for it: `np.asarray(stored)`.

    Attributes:
      shape: of the array.
      dtype: NumPy's name of its type.
      read: reads it.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def read(path: pathlib.Path, *, fix: str) -> dict[str, np.ndarray]:
    """All tensors of a file.

    Args:
      path: of an existing file.
      fix: what to do about a damaged one, for the message.

    Raises:
      UserError: the file is truncated or otherwise damaged.
    """
    file = _open(path, fix=fix)
    with _damage(path, fix=fix):
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def save(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file as torch's, each array as it reads, whatever its strides.

    Raises:
      StorageError: it cannot be written; the library says so in its own way.
    """
    try:
        # The library puts one of its own in its place, for its owner alone.
        path.touch()
        mode = path.stat().st_mode
        # It writes memory as it lies, which of a view is another array's. (Not
        # `ascontiguousarray`, which gives an array without axes one.)
        in_rows = {k: np.asarray(x, order="C") for k, x in arrays.items()}
        safetensors.numpy.save_file(in_rows, path, {"format": "pt"})
        path.chmod(mode)
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageError(
            f"{path.name} could not be written in {str(path.parent)!r}: "
            f"{error}. Nothing that was complete is lost; make room and run "
            "the same command again."
        ) from None


def header(path: pathlib.Path, *, fix: str) -> dict[str, Stored]:
    """The tensors of one file by name, none read.

    Raises:
      UserError: as `read`, with the folder's name.
    """
    try:
        file = _open(path, fix=fix)
        with _damage(path, fix=fix):
            return {
                name: _stored(file, name, path, fix=fix)
                for name in file.keys()  # noqa: SIM118
            }
    except UserError as error:
        raise UserError(f"Backbone {str(path.parent)!r}: {error}.") from None


def _stored(file: Any, name: str, path: pathlib.Path, *, fix: str) -> Stored:
    def read() -> np.ndarray:
        # Opened anew: pages of a mapped file count as memory until it is shut.
        with _open(path, fix=fix) as file, _damage(path, fix=fix):
            return file.get_tensor(name)

    part = file.get_slice(name)
    kind = str(part.get_dtype())
    return Stored(tuple(part.get_shape()), _FLOATS.get(kind, kind), read)


def _open(path: pathlib.Path, *, fix: str) -> Any:
    """An open file; only its header has been read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if size < 8 or header > size - 8:
        raise UserError(
            f"{path.name} is damaged: its {size} bytes cannot hold a header "
            f"of {header}; {fix}"
        )
    with _damage(path, fix=fix):
        return safetensors.safe_open(path, framework="np")


@contextlib.contextmanager
def _damage(path: pathlib.Path, *, fix: str) -> Iterator[None]:
    """Turns what a bad file raises into a `UserError`."""
    try:
        yield
    except _DAMAGED as error:
        raise UserError(
            f"{path.name} ({path.stat().st_size} bytes) is damaged ({error}): "
            f"{fix}"
        ) from None
