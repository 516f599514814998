"""How many lanes a device computes at a time."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from panda_jax import models
from panda_jax.models import Config
from panda_jax.models.t5 import T5Config

# Of the device's memory; the rest is for what an estimate leaves out.
_USABLE = 0.8


def lane_bytes(
    config: Config, *, rows: int, positions: int, targets: int = 0
) -> int:
    """What the backward pass of one lane keeps, roughly, in bytes.

    A layer keeps its matrix products' inputs and the attention's scores in
    fp32; rematerialised, its input alone, and one layer's all while it is
    computed again.

    Args:
      config: of the backbone; its `remat` and `dtype` count.
      rows: of a batch, candidates counted singly.
      positions: of text and prompt.
      targets: pieces that a text-to-text model writes.
    """
    c = config
    size = jnp.dtype(c.dtype).itemsize
    linear = (8 * c.width + 3 * c.ffn) * size
    layer = positions * (linear + 8 * c.heads * positions)
    depth = c.layers
    kept = positions * c.width * size
    logits = 0
    if isinstance(c, T5Config):
        depth += c.decoder_layers
        logits = 8 * targets * c.vocab_size
    layers = depth * kept + layer if c.remat else depth * layer
    return rows * (layers + logits)


def lanes_at_once(lane: int, *, here: int, memory: int, held: int) -> int:
    """Lanes a device computes side by side; 0 for all that it has.

    Args:
      lane: bytes of one, as `lane_bytes` has them.
      here: lanes of the device.
      memory: of the device, in bytes.
      held: bytes of it that the weights take.
    """
    fit = math.floor((_USABLE * memory - held) / max(lane, 1))
    return 0 if fit >= here else max(1, fit)


def choose(
    config: Config,
    *,
    rows: int,
    positions: int,
    targets: int,
    mesh: Mapping[str, int],
    dims: int,
    here: int,
    memory: int,
) -> int:
    """`lanes_at_once` on a mesh.

    Args:
      config: of the backbone.
      rows: of a batch, or of the part whose gradient is computed at a time.
      positions: as in `lane_bytes`, as are the targets.
      targets: of a text-to-text model.
      mesh: axis -> size.
      dims: parameter_partitioning_dims.
      here: lanes of each device.
      memory: of each device, in bytes.
    """
    fsdp = mesh.get("fsdp", 1)
    lane = lane_bytes(
        config,
        rows=-(-rows // fsdp),
        positions=positions,
        targets=targets,
    )
    split = mesh.get("model", 1) * (fsdp if dims == 2 else 1)
    held = weight_bytes(config, partitions=split)
    return lanes_at_once(lane, here=here, memory=memory, held=held)


def weight_bytes(config: Config, *, partitions: int) -> int:
    """Of the frozen weights on each device, split over so many."""
    init = models.module(config).init
    shapes = jax.eval_shape(lambda key: init(key, config), jax.random.key(0))
    numbers = sum(x.size for x in jax.tree.leaves(shapes))
    return numbers * jnp.dtype(config.dtype).itemsize // partitions
