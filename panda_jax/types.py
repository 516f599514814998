"""Array aliases and the glossary of axes that every docstring uses.

N lanes (prompts trained side by side)   B batch       T text tokens
P prompt length   D model width          L layers      H heads
K head dimension  F feed-forward width   V vocabulary  C classes
M sources         E examples of a split
"""

from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
ArrayLike = jax.Array | np.ndarray
ScalarLike = ArrayLike | np.generic | float
PyTree = Any
Params = dict[str, Any]


class Batch(NamedTuple):
    """One batch of encoder examples.

    Attributes:
      tokens: [B, T] int32 word-piece ids, `[CLS] a [SEP] b [SEP]`, 0-padded;
        [B, K, T] of kind choice, K candidates a question.
      segments: likewise: token types, 0 for the first text, 1 for the second.
      labels: by the kind of task: [B] int32 class ids; [B] float32 scores;
        [B, K] int32, 1 right, 0 wrong, -1 no candidate; [B, T] int32 tag ids,
        -1 where nothing is to be said; [B, 2] int32 first and last position;
        [B, U] int32 target ids, 0-padded, of text-to-text backbones.
    """

    tokens: ArrayLike
    segments: ArrayLike
    labels: ArrayLike
