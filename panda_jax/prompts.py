"""A prompt is data: a small pytree that a frozen backbone takes as argument.

Because the prompt is not part of the backbone's parameters, `tx.init(prompt)`
holds the optimizer state of the prompt alone by construction.
"""

import dataclasses

import jax
import jax.numpy as jnp

from panda_jax.errors import UserError
from panda_jax.types import Array, ArrayLike, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompt:
    """A soft prompt and, for an encoder, the task head trained with it.

    Attributes:
      vectors: a deep prompt [L, 2, P, H, K] (key and value vectors put before
        each layer's own), or a shallow prompt [P, D] (input embeddings put
        before the encoder's input).
      head: `{"kernel": [D, C], "bias": [C]}`, or empty where the output needs
        none (text-to-text backbones).
    """

    vectors: ArrayLike
    head: Params

    @property
    def kind(self) -> str:
        """`"deep"` or `"shallow"`."""
        return "deep" if self.vectors.ndim == 5 else "shallow"

    @property
    def length(self) -> int:
        """P, the number of prompt positions."""
        return self.vectors.shape[2 if self.kind == "deep" else 0]


def prompt_shape(
    kind: str, length: int, *, layers: int, width: int, heads: int
) -> tuple[int, ...]:
    """The shape of `Prompt.vectors` for a backbone of these sizes.

    Raises:
      UserError: `kind` is neither `"deep"` nor `"shallow"`, or `length` < 0.
    """
    if length < 0:
        raise UserError(f"Prompt length is {length}, expected 0 or more.")
    if kind == "deep":
        return (layers, 2, length, heads, width // heads)
    if kind == "shallow":
        return (length, width)
    raise UserError(
        f"Unknown prompt kind {kind!r}, expected 'deep' or 'shallow'."
    )


def normal_vectors(
    key: Array, shape: tuple[int, ...], *, stddev: float = 0.02
) -> Array:
    """Fresh prompt vectors ~ N(0, stddev^2), fp32: the paper's initialiser."""
    return stddev * jax.random.normal(key, shape, jnp.float32)


def fresh_head(
    key: Array, width: int, outputs: int, *, stddev: float = 0.02
) -> Params:
    """A new linear head [D, C]: normal kernel, zero bias, as BERT's own."""
    kernel = stddev * jax.random.normal(key, (width, outputs), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros((outputs,), jnp.float32)}
