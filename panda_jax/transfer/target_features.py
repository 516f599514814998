"""What the label-using metrics read: a target's training rows, with labels."""

import functools
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.data.examples import AnyExamples, Examples
from panda_jax.models import Config
from panda_jax.step import steps
from panda_jax.tasks import specs
from panda_jax.transfer.probing import Rows, rows_of_examples
from panda_jax.types import Array, ArrayLike, Params

# Words of tagging tasks that a readout is fitted to, at most.
_WORDS = 2000


class Labelled(NamedTuple):
    """Rows with something to say of each feature.

    Attributes:
      rows: to probe.
      targets: [E] int class ids or float scores.
      classes: how many there are; None for scores.
      words: [2, E] row and position of each feature, or None for one a row.
      groups: [E] of features that tell of each other: candidates of a question,
        words of a sentence, answers about a passage; None for none.
    """

    rows: Rows
    targets: np.ndarray
    classes: int | None
    words: np.ndarray | None = None
    groups: np.ndarray | None = None

    @property
    def name(self) -> str:
        """sha256 of what there is to say."""
        digest = hashlib.sha256(f"{self.classes}".encode())
        for array in (self.targets, self.words, self.groups):
            digest.update(b"|" if array is None else array.tobytes())
        return digest.hexdigest()


def labelled(task: str, examples: AnyExamples) -> Labelled | None:
    """The features' targets; None for a task that has none of that kind.

    Classification: a class a row. Choice: right or wrong, a candidate. Scores
    as they are. Tags: the tag of each word, the first two thousand. Text to
    text likewise, of the answer. Spans and listed answers have none, and a
    single class is none.
    """
    spec, rows = specs.get(task), rows_of_examples(examples)
    classes: int | None = len(spec.labels)
    words = groups = None
    if spec.group:
        ids = [str(x[spec.group]) for x in examples.parsed_references]
        groups = np.unique(ids, return_inverse=True)[1]
    if isinstance(examples, Examples):
        targets = examples.labels
        if spec.kind == "choice":
            classes, groups = 2, examples.question
        elif spec.kind == "tags":
            words = np.argwhere(targets >= 0)[:_WORDS].T
            groups = words[0]
            targets, classes = targets[tuple(words)], spec.outputs
        elif spec.kind == "span":
            return None
    else:
        if spec.kind in ("span", "tags") or spec.listed_choices:
            return None
        # The label alone, also of answers that a question groups.
        targets = np.array([x["label"] for x in examples.parsed_references])
    if groups is not None and len(np.unique(groups)) < 2:
        return None
    if spec.kind == "regression":
        return Labelled(rows, np.asarray(targets, np.float32), None)
    if len(np.unique(targets)) < 2:
        return None
    targets = np.asarray(targets, np.int32)
    return Labelled(rows, targets, classes, words, groups)


def features(found: np.ndarray, data: Labelled) -> np.ndarray:
    """[E, D] of what was read a row: [rows, D], or [rows, T, D] for words."""
    return found if data.words is None else found[tuple(data.words)]


@jax.jit
def ridge_weights(features: ArrayLike, columns: ArrayLike) -> Array:
    """[D, C]: the ridge readout of standardised columns, penalty D.

    Args:
      features: [E, D].
      columns: [E, C].
    """
    x, y = jnp.asarray(features), jnp.asarray(columns)
    gram = x @ x.T + x.shape[1] * jnp.eye(len(x))
    return x.T @ jnp.linalg.solve(gram, y)


def columns_of(data: Labelled) -> np.ndarray:
    """[E, C] of zero mean: classes one-hot, scores to a deviation of 1."""
    if data.classes is None:
        columns = data.targets[:, None].astype(np.float32)
        columns = columns / max(float(columns.std()), 1e-6)
    else:
        columns = np.eye(data.classes, dtype=np.float32)[data.targets]
    return columns - columns.mean(0)


@functools.partial(jax.jit, static_argnames=("config", "read", "layer"))
def readout_gradient(
    vectors: ArrayLike,
    params: Params,
    tokens: ArrayLike,
    segments: ArrayLike,
    columns: ArrayLike,
    words: ArrayLike | None,
    *,
    config: Config,
    read: str,
    layer: int | None = None,
) -> Array:
    """Gradient, by a prompt, of the squared error of the best ridge readout.

    A fresh head says nothing yet and its gradient is noise. At the readout
    that is best for these features, its own gradient is zero, so that only the
    prompt's is left (the envelope theorem).

    Args:
      vectors: of the prompt.
      params: the backbone.
      tokens: [R, T].
      segments: likewise.
      columns: [E, C] as `columns_of` gives them.
      words: [2, E] where features are words.
      config: static.
      read: static, a key of `steps.probe` a row, or `hidden` for words.
      layer: static, of `layers`.
    """

    def loss(vectors: Array) -> Array:
        found = steps.probe(params, tokens, segments, vectors, config=config)
        x = found[read] if layer is None else found[read][layer]
        x = x if words is None else x[words[0], words[1]]
        x = x - x.mean(0)
        x = x / jnp.sqrt(jnp.square(x).mean() + 1e-12)
        weights = jax.lax.stop_gradient(ridge_weights(x, columns))
        return jnp.square(jnp.asarray(columns) - x @ weights).mean()

    return jax.grad(loss)(jnp.asarray(vectors))
