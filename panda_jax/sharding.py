"""Meshes, and where each parameter lies on one, by logical-axis rules.

Names and rules are T5X's: every axis of a parameter has a logical name, and a
rule table says which axis of the mesh, if any, it is split over.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from panda_jax.errors import UserError
from panda_jax.types import PyTree

AXES = ("data", "model")
Rules = tuple[tuple[str, str | None], ...]

# As T5X's standard rules with one dimension: each parameter over `model`.
RULES_1D: Rules = (
    ("vocab", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
    ("mlp", "model"),
    ("pooled", "model"),
)
# And with two: the other axis of each over `data`, so that nothing (with
# method `model`: no optimizer state either) is held twice.
RULES_2D: Rules = (*RULES_1D, ("embed", "data"))


def mesh(
    num_partitions: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh `data` x `model` of devices.

    Args:
      num_partitions: size of `model`, as T5X's partitioner has it; the other
        devices are `data`.
      devices: by default all.

    Raises:
      UserError: the devices do not divide into so many partitions.
    """
    devices = jax.devices() if devices is None else devices
    if num_partitions < 1 or len(devices) % num_partitions:
        raise UserError(
            f"num_partitions is {num_partitions}, expected a divisor of the "
            f"{len(devices)} devices."
        )
    grid = np.asarray(devices).reshape(-1, num_partitions)
    return Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)


def shardings(boxed: PyTree, mesh: Mesh, rules: Rules = RULES_2D) -> PyTree:
    """Where each parameter lies.

    Args:
      boxed: parameters (or their shapes) with logical axes, as a model's
        `init` gives them.
      mesh: with the axes that the rules name.
      rules: logical axis -> axis of the mesh; an axis without a rule, or not
        divisible by the mesh's, is held whole on each device.

    Returns:
      A tree of `NamedSharding`, as the unboxed parameters.
    """
    sizes = dict(mesh.shape)
    table = dict(rules)

    def place(leaf: object) -> NamedSharding:
        if not isinstance(leaf, nn.Partitioned):
            return NamedSharding(mesh, PartitionSpec())
        found = []
        for name, size in zip(leaf.names, leaf.value.shape, strict=True):
            axis = None if name is None else table.get(name)
            fits = axis is not None and size % sizes[axis] == 0
            found.append(axis if fits and axis not in found else None)
        return NamedSharding(mesh, PartitionSpec(*found))

    return jax.tree.map(
        place, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    )


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Rows over `data` where they divide, else whole on each device."""
    even = rows % mesh.shape["data"] == 0
    return NamedSharding(mesh, PartitionSpec("data" if even else None))
