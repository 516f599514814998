"""What was read of a prompt, on disk by the hash of what it rests on."""

import hashlib
import json
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from panda_jax.io import arrays
from panda_jax.io.files import atomic_file, cache_folder

# Part of every name; raise it when what is read changes.
_VERSION = 1


class VectorCache:
    """Small arrays in `vectors/` of the user's cache folder.

    A file that cannot be read or written costs a warning and its computation.

    Args:
      on: whether anything is kept and found.
    """

    def __init__(self, *, on: bool = True) -> None:
        self.on = on

    def key(self, about: Sequence[Any]) -> str:
        """A name for what rests on these values."""
        text = json.dumps([_VERSION, *about])
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> np.ndarray | None:
        """The array, or None where there is none to be read."""
        if not self.on:
            return None
        path = self._path(key)
        try:
            return arrays.read_npy(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _warn(f"{path} is damaged and computed anew: {error}.")
            return None

    def put(self, key: str, value: np.ndarray) -> None:
        """Keeps an array; gives up with the first that cannot be written."""
        if not self.on:
            return
        try:
            path = self._path(key)
            with atomic_file(path, durable=False) as temporary:
                np.save(temporary, value, allow_pickle=False)
        except OSError as error:
            _warn(f"Nothing is kept in {self._path(key).parent}: {error}.")
            self.on = False

    def _path(self, key: str) -> pathlib.Path:
        return cache_folder() / "vectors" / key[:2] / f"{key}.npy"


def _warn(words: str) -> None:
    warnings.warn(words, RuntimeWarning, stacklevel=3)
