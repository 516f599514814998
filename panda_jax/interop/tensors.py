"""Safetensors files, read without torch and without trusting them."""

import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from panda_jax.errors import UserError

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


def read(path: pathlib.Path, *, fix: str) -> dict[str, np.ndarray]:
    """All tensors of a file.

    Args:
      path: of an existing file.
      fix: what to do about a damaged one, for the message.

    Raises:
      UserError: the file is truncated or otherwise damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if size < 8 or header > size - 8:
        raise UserError(
            f"{path.name} is damaged: its {size} bytes cannot hold a header "
            f"of {header}; {fix}"
        )
    try:
        return safetensors.numpy.load_file(path)
    except _DAMAGED as error:
        raise UserError(
            f"{path.name} ({size} bytes) is damaged ({error}): {fix}"
        ) from None
