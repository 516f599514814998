"""What pays on a CPU, and would only be in the way of who reads the models.

Ways to the same numbers (to rounding; dropout's draws to the bit):
dropout's bits in one fused pass, layers compiled one by one, cross-attention by
absorbed kernels where queries are few, and freed memory given back.
`PANDA_CPU_TRICKS=0` turns all of them off, e.g. to read a compiled program or
to compare with another's; and packed rows (`step.parts`) with them, on which
dropout draws other masks.
"""

import ctypes
import dataclasses
import math
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.types import Array

# Layers of a stack that are compiled one by one.
MOST_UNROLLED = 12

Config = TypeVar("Config")


def enabled() -> bool:
    """Whether the environment leaves them on; asked when a step is traced."""
    return os.environ.get("PANDA_CPU_TRICKS", "1") != "0"


def unrolled(config: Config) -> Config:
    """A model's sizes with layers compiled one by one, but for deep stacks.

    A loop copies what the backward pass needs into arrays of all layers; deep
    stacks compile for minutes without it.
    """
    c: Any = config
    if c.remat or c.layers > MOST_UNROLLED or not enabled():
        return config
    return dataclasses.replace(c, unroll=True)


def absorbs(queries: int, rows: int, head_dim: int) -> bool:
    """Whether `absorbed` costs less than keys and values of the memory.

    Args:
      queries: positions that read, of all rows.
      rows: of the memory.
      head_dim: K.
    """
    return queries < rows * head_dim and enabled()


def absorbed(
    query: Array,
    key: Array,
    value: Array,
    memory: Array,
    bias: Array,
    drop: Callable[[Array], Array],
) -> Array:
    """Attention with the keys' and values' kernels on the queries' side.

    q (m W_k)' = (q W_k') m': where a memory is read by fewer queries than a
    head is wide, its keys and values cost more than all the rest.

    Args:
      query: [B, T, H, K].
      key: [D, H, K], the keys' kernel.
      value: [D, H, K], the values'.
      memory: [B, S, D].
      bias: fp32, broadcast to [B, H, T, S].
      drop: dropout of the probabilities.

    Returns:
      [B, T, H, K].
    """
    query = jnp.einsum("bthk,dhk->bthd", query, key)
    scores = jnp.einsum(
        "bthd,bsd->bhts", query, memory, preferred_element_type=jnp.float32
    )
    probabilities = drop(jax.nn.softmax(scores + bias, axis=-1))
    context = jnp.einsum(
        "bhts,bsd->bthd", probabilities.astype(memory.dtype), memory
    )
    return jnp.einsum("bthd,dhk->bthk", context, value)


def trim() -> None:
    """Gives freed memory back to the system, where the C library can (glibc).

    It keeps what it may need again, and after compiling a program that is more
    than the program.
    """
    if sys.platform == "linux" and enabled():
        found = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if found is not None:
            found(0)


# Threefry's rotations, for even and odd groups of four rounds.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def random_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """`jax.random.bits(key, shape, uint16)` as uint32, to the bit.

    JAX makes a loop over the rounds of it on the CPU, with the whole array in
    memory between them. Written out, the rounds are one pass, which XLA fuses
    into the choice that they serve.

    Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3":
    Threefry-2x32 of 20 rounds, of each element's number.
    """
    words = jax.random.key_data(key)
    known = words.shape == (2,) and math.prod(shape) < 2**32
    if not (known and enabled()):
        return jax.random.bits(key, shape, jnp.uint16).astype(jnp.uint32)
    number = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        number = number * np.uint32(size) + along
    keys = (words[0], words[1], words[0] ^ words[1] ^ np.uint32(0x1BD11BDA))
    # The numbers' upper words are 0.
    x, y = jnp.broadcast_to(keys[0], shape), number + keys[1]
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            x = x + y
            y = (y << np.uint32(turn)) | (y >> np.uint32(32 - turn))
            y = x ^ y
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return (x ^ y) & np.uint32(0xFFFF)
