"""A prompt is data: a small pytree that a frozen backbone takes as argument.

Because the prompt is not part of the backbone's parameters, `tx.init(prompt)`
holds the optimizer state of the prompt alone by construction.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.errors import UserError
from panda_jax.types import Array, ArrayLike, Params

# Axes of `Prompt.vectors`, and which of them is P, from the end: the axes that
# stacked prompts (lanes, members of a bank) have before leave that as it is.
_AXES = {"deep": 5, "shallow": 2}
_POSITIONS = {"deep": -3, "shallow": -2}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompt:
    """A soft prompt and, for an encoder, the task head trained with it.

    Attributes:
      vectors: a deep prompt [L, 2, P, H, K] (key and value vectors put before
        each layer's own), or a shallow prompt [P, D] (input embeddings put
        before the encoder's input). Stacked prompts have axes before these.
      head: `{"kernel": [D, C], "bias": [C]}`, or empty where the output needs
        none (text-to-text backbones).
      kind: `"deep"` or `"shallow"`, static under JAX's transformations. A
        single prompt need not say; stacked ones must.

    Raises:
      UserError: no `kind` for vectors that are no single prompt's.
    """

    vectors: ArrayLike
    head: Params
    kind: str = dataclasses.field(default="", metadata={"static": True})

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", kind_of(self.vectors.shape))

    @property
    def length(self) -> int:
        """P, the number of prompt positions."""
        return self.vectors.shape[_POSITIONS[self.kind]]


def kind_of(shape: Sequence[int]) -> str:
    """`"deep"` or `"shallow"`: the kind of a single prompt of this shape.

    Raises:
      UserError: it is neither [P, D] nor [L, 2, P, H, K].
    """
    for kind, axes in _AXES.items():
        if len(shape) == axes:
            return kind
    raise UserError(
        f"Prompt vectors of shape {list(shape)}, expected [P, D] (shallow) or "
        "[L, 2, P, H, K] (deep). Say kind='deep' or kind='shallow' of prompts "
        "that are stacked along further axes."
    )


def length_of(shape: Sequence[int]) -> int:
    """P of a single prompt of this shape."""
    return shape[_POSITIONS[kind_of(shape)]]


def prompt_shape(
    kind: str,
    length: int,
    *,
    layers: int,
    width: int,
    heads: int,
    head_dim: int | None = None,
) -> tuple[int, ...]:
    """The shape of `Prompt.vectors` for a backbone of these sizes.

    Args:
      kind: `"deep"` or `"shallow"`.
      length: P.
      layers: L, of the decoder where the backbone has one.
      width: D.
      heads: H.
      head_dim: K; None for D / H, which T5's need not be.

    Raises:
      UserError: `kind` is neither `"deep"` nor `"shallow"`, or `length` < 0.
    """
    if length < 0:
        raise UserError(f"Prompt length is {length}, expected 0 or more.")
    if kind == "deep":
        return (layers, 2, length, heads, head_dim or width // heads)
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


def vocabulary_vectors(
    key: Array,
    table: ArrayLike,
    length: int,
    *,
    population: int = 5000,
    ids: Sequence[int] | None = None,
) -> Array:
    """A shallow prompt of embeddings drawn from the vocabulary.

    Lester et al., 2021 (arXiv 2104.08691), "sampled vocabulary": each at most
    once, unless fewer are on offer than the prompt is long.

    Args:
      key: PRNG key; equal keys draw equal rows.
      table: [V, D] the backbone's token embeddings.
      length: P.
      population: how many of the first ids to draw from; T5's vocabulary is
        in the order of frequency.
      ids: those to draw from instead, for vocabularies in another order, such
        as BERT's.

    Returns:
      [P, D] fp32.

    Raises:
      UserError: an id that the table lacks, none to draw from, or `length`
        below 1.
    """
    entries = table.shape[0]
    if ids is None:
        ids = range(min(population, entries))
    offered = _checked_ids(ids, table)
    if length < 1 or not len(offered):
        raise UserError(
            f"A prompt of length {length} cannot be drawn from {len(offered)} "
            "embeddings, expected at least 1 of each."
        )
    again = length > len(offered)
    drawn = jax.random.choice(key, len(offered), (length,), replace=again)
    return jnp.asarray(table, jnp.float32)[jnp.asarray(offered)[drawn]]


def label_vectors(
    key: Array,
    table: ArrayLike,
    length: int,
    labels: Sequence[Sequence[int]],
    *,
    population: int = 5000,
    ids: Sequence[int] | None = None,
) -> Array:
    """A shallow prompt that begins with the embeddings of the class labels.

    Lester et al., 2021, "class label": a label of several pieces is their
    mean; the positions after the labels are `vocabulary_vectors`.

    Args:
      key: as in `vocabulary_vectors`, as are `population` and `ids`.
      table: [V, D].
      length: P.
      labels: the ids of each label's pieces.
      population: of the drawing.
      ids: of the drawing.

    Returns:
      [P, D] fp32.

    Raises:
      UserError: more labels than positions, a label without pieces, or as
        `vocabulary_vectors`.
    """
    drawn = vocabulary_vectors(
        key, table, length, population=population, ids=ids
    )
    if len(labels) > length:
        raise UserError(
            f"{len(labels)} labels do not fit a prompt of length {length}: "
            "lengthen the prompt, or sample the vocabulary alone."
        )
    for position, pieces in enumerate(labels):
        if not len(pieces):
            raise UserError(f"Label {position} has no pieces.")
        rows = jnp.asarray(table, jnp.float32)[_checked_ids(pieces, table)]
        drawn = drawn.at[position].set(rows.mean(0))
    return drawn


def text_vectors(
    key: Array,
    table: ArrayLike,
    length: int,
    text: Sequence[int],
    *,
    population: int = 5000,
    ids: Sequence[int] | None = None,
) -> Array:
    """A shallow prompt of a text's embeddings, cropped to its length.

    After a shorter text come `vocabulary_vectors`, which say what `population`
    and `ids` are.

    Args:
      key: of the drawing.
      table: [V, D].
      length: P.
      text: the ids of its pieces.
      population: of the drawing.
      ids: of the drawing.

    Returns:
      [P, D] fp32.

    Raises:
      UserError: as `vocabulary_vectors`.
    """
    drawn = vocabulary_vectors(
        key, table, length, population=population, ids=ids
    )
    kept = _checked_ids(text[:length], table)
    rows = jnp.asarray(table, jnp.float32)[kept]
    return drawn.at[: len(kept)].set(rows)


def resized_vectors(
    vectors: ArrayLike, length: int, *, fill: ArrayLike
) -> Array:
    """A prompt cropped to its first positions, or padded to another length.

    Args:
      vectors: of a stored prompt, [P, D] or [L, 2, P, H, K].
      length: of the result.
      fill: vectors of that length; the positions that `vectors` lacks are
        taken from there (`normal_vectors`, `vocabulary_vectors`).

    Returns:
      [length, D] or [L, 2, length, H, K], fp32.

    Raises:
      UserError: `fill` is of another shape than the result.
    """
    axis = vectors.ndim + _POSITIONS[kind_of(vectors.shape)]
    shape = (*vectors.shape[:axis], length, *vectors.shape[axis + 1 :])
    if fill.shape != shape:
        raise UserError(
            f"A prompt of shape {list(vectors.shape)} has shape {list(shape)} "
            f"at length {length}, its filling has {list(fill.shape)}: they "
            "are of different backbones or lengths."
        )
    kept = jax.lax.slice_in_dim(
        jnp.asarray(vectors, jnp.float32),
        0,
        min(length, vectors.shape[axis]),
        axis=axis,
    )
    rest = jax.lax.slice_in_dim(
        jnp.asarray(fill, jnp.float32), kept.shape[axis], length, axis=axis
    )
    return jnp.concatenate([kept, rest], axis)


def _checked_ids(ids: Sequence[int], table: ArrayLike) -> np.ndarray:
    """As int32: JAX would read the last row for an id past the table."""
    array = np.asarray(ids, np.int64)
    entries = table.shape[0]
    if len(array) and not 0 <= array.min() <= array.max() < entries:
        wrong = array[(array < 0) | (array >= entries)][0]
        raise UserError(
            f"Id {wrong} is not in a table of {entries} embeddings: the ids "
            "are of another tokenizer."
        )
    return array.astype(np.int32)


def fresh_head(
    key: Array, width: int, outputs: int, *, stddev: float = 0.02
) -> Params:
    """A new linear head [D, C]: normal kernel, zero bias, as BERT's own."""
    kernel = stddev * jax.random.normal(key, (width, outputs), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros((outputs,), jnp.float32)}
