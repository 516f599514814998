"""Safetensors files, read without torch and without trusting them."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from panda_jax.errors import StorageError, UserError
from panda_jax.interop.folders import inside, json_inside

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


def read_folder(folder: pathlib.Path) -> dict[str, Stored]:
    """The tensors of a Hugging Face folder, in one file or in shards.

    Nothing but headers is read before a tensor is asked for.

    Raises:
      UserError: no weights, a damaged file, or an index that names a file
        outside the folder or disagrees with what the files hold.
    """
    fix = "download it again"
    if (folder / SINGLE).is_file():
        return _header(inside(folder, SINGLE), fix=fix)
    if not (folder / INDEX).is_file():
        pickle = next(folder.glob("pytorch_model*.bin"), None)
        raise UserError(
            f"The weights file {str(folder / SINGLE)!r} does not exist, nor "
            f"{INDEX}. "
            + (
                f"{pickle.name} is a pickle, which is never loaded here: save "
                "the model again with a transformers that writes safetensors."
                if pickle
                else "Expected a Hugging Face folder with config.json, "
                "safetensors weights and the tokenizer's files."
            )
        )
    index = folder / INDEX
    placed = json_inside(folder, INDEX, what="index").get("weight_map")
    if not isinstance(placed, dict) or not all(
        isinstance(file, str) for file in placed.values()
    ):
        raise UserError(
            f"{str(index)!r} holds no weight_map of tensor to file: {fix}."
        )
    tensors: dict[str, Stored] = {}
    for shard in sorted(set(placed.values())):
        path = inside(folder, shard)
        if path.suffix != ".safetensors" or not path.is_file():
            raise UserError(
                f"{str(index)!r} names the file {shard!r}, which is no "
                f"safetensors file in the folder: {fix}."
            )
        named = {name for name, file in placed.items() if file == shard}
        held = _header(path, fix=fix)
        if named != held.keys():
            raise UserError(
                f"{str(path)!r} and {INDEX} disagree. Only the index has "
                f"{sorted(named - held.keys())[:5]}, only the file has "
                f"{sorted(held.keys() - named)[:5]}: {fix}."
            )
        tensors |= held
    return tensors


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


def _header(path: pathlib.Path, *, fix: str) -> dict[str, Stored]:
    """The tensors of one file by name, none read."""
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
