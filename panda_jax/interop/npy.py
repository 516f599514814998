"""Prompts as google-research/prompt-tuning keeps them: `.npy`, [P, D]."""

import io
import math
import pathlib

import ml_dtypes
import numpy as np
from numpy.lib import format as npy_format

from panda_jax.errors import UserError
from panda_jax.io import arrays
from panda_jax.io.files import PathLike, atomic_file
from panda_jax.types import ArrayLike

_TWO_BYTES = np.dtype("V2")
_TYPES = (np.dtype("<f4"), np.dtype("<f2"), np.dtype(ml_dtypes.bfloat16))


def read(path: PathLike) -> np.ndarray:
    """A shallow prompt [P, D] in fp32, which holds every number of the file.

    Raises:
      UserError: no such file, no `.npy` file, or its array is not of fp32,
        bf16 or fp16, not two-dimensional, or has NaN or infinite values.
    """
    path = pathlib.Path(path)
    try:
        return _read(path)
    except UserError as error:
        reason = str(error)
    except (OSError, ValueError) as error:
        what = str(error).partition("\n")[0][:200]
        reason = f"it cannot be read ({what}); copy it again from its source"
    raise UserError(f"The prompt file {str(path)!r} is refused: {reason}.")


def _read(path: pathlib.Path) -> np.ndarray:
    with path.open("rb") as file:
        shape, fortran_order, dtype = arrays.header(file)
        # Before any of the data is read: a header may claim anything.
        # NumPy does not know bfloat16 and calls what it is given two bytes.
        dtype = np.dtype(ml_dtypes.bfloat16) if dtype == _TWO_BYTES else dtype
        if dtype not in _TYPES:
            raise UserError(
                f"its array is of type {dtype}, expected float32, bfloat16 or "
                "float16; save it with array.astype(numpy.float32)"
            )
        if len(shape) != 2 or min(shape) < 1:
            raise UserError(
                f"its array has shape {list(shape)}, expected [P, D]: a "
                "vector for each prompt position"
            )
        data = path.stat().st_size - file.tell()
        if data != math.prod(shape) * dtype.itemsize:
            raise UserError(
                f"it is damaged: {data} bytes of data for an array of shape "
                f"{list(shape)}; copy it again from its source"
            )
        array = np.frombuffer(file.read(), dtype)
    array = array.reshape(shape, order="F" if fortran_order else "C")
    if not np.isfinite(array).all():
        raise UserError("its array has NaN or infinite values")
    return np.ascontiguousarray(array, np.float32)


def write(path: PathLike, vectors: ArrayLike) -> None:
    """Writes a shallow prompt [P, D] as fp32, whole or not at all."""
    array = np.ascontiguousarray(vectors, np.float32)
    made = io.BytesIO()
    npy_format.write_array(made, array, (1, 0), allow_pickle=False)
    with atomic_file(path) as temporary:
        # NumPy itself does not say why a disk takes no more.
        temporary.write_bytes(made.getvalue())
