"""Meshes, and where each parameter lies on one, by logical-axis rules.

Names and rules are T5X's: every axis of a parameter has a logical name, and a
rule table says which axis of the mesh, if any, it is split over.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from panda_jax.errors import UserError
from panda_jax.types import PyTree

# data: lanes, or the batch's rows where there are fewer lanes than devices.
# fsdp: rows of a batch, and weights held once. model: parts of a layer.
AXES = ("data", "fsdp", "model")
Rules = tuple[tuple[str, str | None], ...]

# As T5X's standard rules with one dimension: each parameter over `model`.
RULES_1D: Rules = (
    ("vocab", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
    ("mlp", "model"),
    ("pooled", "model"),
)
# And with two: the other axis of each over `fsdp`, so that no weight (with
# method `finetune`: and no optimizer state) is held twice.
RULES_2D: Rules = (*RULES_1D, ("embed", "fsdp"))


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """How devices are shared out; T5X's name, and its `num_partitions`.

    Attributes:
      num_partitions: devices that hold a layer together (axis `model`).
      mesh_shape: (data, fsdp, model) in place of `num_partitions`; -1 once for
        what is left.
      parameter_partitioning_dims: 1 or 2, the rule table of the frozen
        weights; model-tuning always has 2.
      chunk: lanes that a device computes at a time, 0 for all; None for one
        on CPU, and on accelerators as many as should fit (`chunks`).
    """

    num_partitions: int = 1
    mesh_shape: tuple[int, ...] | None = None
    parameter_partitioning_dims: int = 1
    chunk: int | None = None

    FLAGS: ClassVar = (
        "num_partitions",
        "mesh_shape",
        "parameter_partitioning_dims",
        "chunk",
    )

    @classmethod
    def of_flags(
        cls,
        num_partitions: int | None,
        mesh_shape: str | None,
        parameter_partitioning_dims: int,
        chunk: int | None = None,
    ) -> "Partitioner | None":
        """As the command line says it; None where it says nothing.

        Raises:
          UserError: not three whole numbers, or both of two ways.
        """
        said = (num_partitions, mesh_shape, parameter_partitioning_dims, chunk)
        if said == (None, None, 1, None):
            return None
        if chunk is not None and chunk < 0:
            raise UserError(f"chunk is {chunk}, expected 0 (all) or more.")
        if None not in (num_partitions, mesh_shape):
            raise UserError(
                "num_partitions and mesh_shape say the same thing: give one."
            )
        if parameter_partitioning_dims not in (1, 2):
            raise UserError(
                "parameter_partitioning_dims is "
                f"{parameter_partitioning_dims}, expected 1 or 2."
            )
        shape = None
        if mesh_shape is not None:
            try:
                shape = tuple(int(part) for part in mesh_shape.split(","))
            except ValueError:
                shape = ()
            if len(shape) != 3:
                raise UserError(
                    f"mesh_shape is {mesh_shape!r}, expected data,fsdp,model, "
                    "e.g. 4,1,2."
                )
        return cls(
            num_partitions or 1, shape, parameter_partitioning_dims, chunk
        )

    @property
    def rules(self) -> Rules:
        """The table of the frozen weights."""
        return RULES_2D if self.parameter_partitioning_dims == 2 else RULES_1D

    def memory(self) -> int | None:
        """Bytes of an accelerator; None for a CPU."""
        device = jax.local_devices()[0]
        if device.platform == "cpu":
            return None
        stats = device.memory_stats() or {}
        # An accelerator that does not say has 16 GiB at least.
        return stats.get("bytes_limit", 16 * 2**30)

    def shape(self, devices: int, lanes: int) -> tuple[int, int, int]:
        """(data, fsdp, model) for so many devices and lanes.

        One lane takes the devices for the rows of its batch.

        Raises:
          UserError: the devices do not divide so.
        """
        asked = self.mesh_shape
        if asked is None:
            if self.num_partitions < 1 or devices % self.num_partitions:
                raise UserError(
                    f"num_partitions is {self.num_partitions}, expected a "
                    f"divisor of the {devices} devices."
                )
            one = lanes == 1
            asked = (1 if one else -1, -1 if one else 1, self.num_partitions)
        given = math.prod(size for size in asked if size != -1)
        sizes = tuple(
            devices // max(given, 1) if size == -1 else size for size in asked
        )
        if len(sizes) != 3 or min(sizes) < 1 or math.prod(sizes) != devices:
            raise UserError(
                f"mesh_shape is {tuple(asked)}, expected (data, fsdp, model) "
                f"with a product of {devices}, the number of devices; -1 "
                "stands once for what is left."
            )
        return sizes

    def mesh(
        self, lanes: int = 1, *, devices: Sequence[Any] | None = None
    ) -> Mesh:
        """The mesh of the devices, by default all of them.

        Slices of a multi-slice machine lie along `data`, over the slow links.

        Raises:
          UserError: the devices do not divide so.
        """
        devices = jax.devices() if devices is None else devices
        shape = self.shape(len(devices), lanes)
        slices = {getattr(device, "slice_index", 0) for device in devices}
        if len(slices) > 1 and shape[0] % len(slices) == 0:
            inner = (shape[0] // len(slices), *shape[1:])
            grid = mesh_utils.create_hybrid_device_mesh(
                inner, (len(slices), 1, 1), devices
            )
        elif devices[0].platform == "tpu":
            # A 4x4 slice also makes 8x1x2: an axis may be half a torus'.
            grid = mesh_utils.create_device_mesh(
                shape, devices, allow_split_physical_axes=True
            )
        else:
            grid = np.asarray(devices).reshape(shape)
        # Explicit axes, make_mesh's default, are not for Linen's modules.
        return Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


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

    def of(leaf: object) -> NamedSharding:
        if not isinstance(leaf, nn.Partitioned):
            return NamedSharding(mesh, PartitionSpec())
        found = []
        for name, size in zip(leaf.names, leaf.value.shape, strict=True):
            axis = None if name is None else table.get(name)
            fits = axis is not None and size % sizes[axis] == 0
            found.append(axis if fits and axis not in found else None)
        return NamedSharding(mesh, PartitionSpec(*found))

    return jax.tree.map(
        of, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    )


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays where their shardings say.

    With several processes each hands in the same arrays and keeps its share.
    """
    return jax.tree.map(_put, tree, shardings)


def place(tree: PyTree, mesh: Mesh, *axes: str | None) -> PyTree:
    """Arrays on the mesh, their first dimensions split over these axes."""
    wanted = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda x: _put(x, wanted), tree)


def _put(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    dtype = getattr(array, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data)
    host = np.asarray(array)
    return jax.make_array_from_callback(
        host.shape, sharding, lambda index: host[index]
    )


def on_host(tree: PyTree) -> PyTree:
    """Whole NumPy arrays, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def whole(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_replicated:
            return jax.device_get(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, tree)
