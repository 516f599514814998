"""Parameter trees from and to the named arrays of other projects' files.

A table says of which arrays each of our parameters is made.  Every array of
the file is used once or named in the error; nothing that the backbone needs is
ever filled with random numbers.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from panda_jax import models
from panda_jax.errors import UserError
from panda_jax.models.bert import BertConfig
from panda_jax.models.t5 import T5Config
from panda_jax.models.trees import flatten
from panda_jax.types import Params

FLOATS = ("float32", "float16", "bfloat16")
# A bound on what a file may claim to be; the largest vocabulary is 250112.
_MOST = {"layers": 1 << 10, "size": 1 << 24}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our parameters, and the arrays of a file that it is made of.

    Attributes:
      shape: of the parameter, the layers first where it has them.
      names: of the arrays: one with all, or one a layer.
      file_shape: of each array as it lies in the file.
      axes: order of an array's axes in which it has our layout, None for its
        own; axes that lie joined here may be apart there.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    file_shape: tuple[int, ...]
    axes: tuple[int, ...] | None = None


Table = dict[str, Leaf]


def shapes(config: BertConfig | T5Config) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of a backbone."""
    init = models.module(config).init
    tree = jax.eval_shape(lambda: init(jax.random.key(0), config))
    leaves = flatten(nn.meta.unbox(tree))
    return {path: leaf.shape for path, leaf in leaves.items()}


def torch_leaf(
    path: str, shape: tuple[int, ...], names: list[str], *, stacked: bool
) -> Leaf:
    """A leaf as torch keeps it: a tensor a layer, matrices transposed."""
    each = shape[1:] if stacked else shape
    turned = path.endswith(("/kernel", "/rel_embedding"))
    return Leaf(
        shape,
        tuple(names),
        each[::-1] if turned else each,
        (1, 0) if turned else None,
    )


def assemble(
    arrays: Mapping[str, Any],
    table: Table,
    *,
    path: str,
    source: str,
    spell: Callable[[str], str] = str,
    unused: re.Pattern[str] | None = None,
    copies: Mapping[str, str] | None = None,
) -> Params:
    """The parameter tree, fp32, from the arrays of a file.

    All names, shapes and types are checked before the first array is read.

    Args:
      arrays: name -> array, or a `Stored` one.
      table: our paths -> leaves.
      path: of the file, for messages.
      source: what the table's sizes are from, for messages.
      spell: a file's name for an array -> the table's name for it.
      unused: names that a file may hold beside.
      copies: arrays that may be there and must then equal another one.

    Raises:
      UserError: an array is missing, superfluous, there twice, of another
        shape or type, or holds NaN or Inf; each by name.
    """
    copies = copies or {}
    found = _spelled(arrays, spell, path=path)
    wanted = {name for leaf in table.values() for name in leaf.names}
    missing = sorted(wanted - found.keys())
    extra = sorted(
        name
        for name in found.keys() - wanted - copies.keys()
        if not (unused and unused.fullmatch(name))
    )
    if missing or extra:
        raise UserError(
            f"{path}: the tensors do not match {source}. "
            f"Missing {len(missing)}: {missing[:5]}. "
            f"Unknown {len(extra)}: {extra[:5]}."
        )
    for ours, leaf in table.items():
        for name in leaf.names:
            _check(found[name], leaf, name, ours, path=path, source=source)
    tree: Params = {}
    for ours, leaf in table.items():
        value = np.empty(leaf.shape, np.float32)
        rows = value.reshape(len(leaf.names), -1)
        for row, name in zip(rows, leaf.names, strict=True):
            array = np.asarray(found[name])
            if leaf.axes is not None:
                array = array.transpose(leaf.axes)
            row[:] = array.reshape(-1)
            if not np.isfinite(row).all():
                raise UserError(f"{path}: tensor {name!r} holds NaN or Inf.")
        _insert(tree, ours, value)
    for name in sorted(found.keys() & copies.keys()):
        if not np.array_equal(found[name], found[copies[name]]):
            raise UserError(
                f"{path}: tensor {name!r} differs from {copies[name]!r}, of "
                f"which {source} says that it is a copy. The file is not of "
                "this model."
            )
    return tree


def disassemble(params: Params, table: Table) -> dict[str, np.ndarray]:
    """The inverse of `assemble`: name -> contiguous array."""
    flat = flatten(params)
    arrays = {}
    for ours, leaf in table.items():
        axes = leaf.axes or tuple(range(len(leaf.file_shape)))
        turned = [leaf.file_shape[axis] for axis in axes]
        value = np.asarray(flat[ours]).reshape(len(leaf.names), *turned)
        for name, part in zip(leaf.names, value, strict=True):
            part = part.transpose(np.argsort(axes))
            arrays[name] = np.ascontiguousarray(part)
    return arrays


def size(
    raw: Mapping[str, Any],
    name: str,
    *,
    path: str,
    default: int | None = None,
    most: str = "size",
) -> int:
    """A positive integer of a `config.json`, `"layers"` or another `"size"`.

    Raises:
      UserError: it is missing, of another type, or absurd.
    """
    value = raw.get(name, default)
    if type(value) is not int or not 1 <= value <= _MOST[most]:
        raise UserError(
            f"{path}: {name} is {value!r}, expected a positive integer up to "
            f"{_MOST[most]}."
        )
    return value


def fraction(
    raw: Mapping[str, Any], name: str, default: float, *, path: str
) -> float:
    """A number of a `config.json` from 0 below 1; `UserError` otherwise."""
    value = raw.get(name, default)
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise UserError(
            f"{path}: {name} is {value!r}, expected a number from 0 below 1."
        )
    return float(value)


def _spelled(
    arrays: Mapping[str, Any], spell: Callable[[str], str], *, path: str
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        if spell(name) in found:
            raise UserError(
                f"{path}: {spell(name)!r} is there twice, once as {name!r}."
            )
        found[spell(name)] = array
    return found


def _check(
    array: Any, leaf: Leaf, name: str, ours: str, *, path: str, source: str
) -> None:
    """Refuses an array of another shape or type than its leaf's."""
    if tuple(array.shape) != leaf.file_shape:
        turned = ", kernels transposed" if leaf.axes else ""
        raise UserError(
            f"{path}: tensor {name!r} has shape {tuple(array.shape)}, "
            f"expected {leaf.file_shape} (of {ours!r}{turned}) by {source}."
        )
    if str(array.dtype) not in FLOATS:
        raise UserError(
            f"{path}: tensor {name!r} is of type {array.dtype}, expected one "
            f"of {', '.join(FLOATS)}."
        )


def _insert(tree: Params, path: str, value: np.ndarray) -> None:
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value
