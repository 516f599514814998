"""Prompt transfer for frozen language models, in JAX.

Train soft prompts on source tasks, predict by activation similarity which
source helps a target, and transfer it with PANDA (arXiv 2208.10160).

Importing this package loads neither TensorFlow nor SeqIO; the names below are
imported from their modules when they are first used.
"""

import importlib
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panda_jax.errors import UserError as UserError

_here = pathlib.Path(__file__).resolve().parent
if not (_here / "tasks").is_dir() and (_here.parent / "tasks").is_dir():
    # A checkout keeps the task registries beside the package; a wheel puts
    # them inside.  Either way they are `panda_jax.tasks`.
    __path__.append(str(_here.parent))

_HOME = {
    "UserError": "errors",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'panda_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"panda_jax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
