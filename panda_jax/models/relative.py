"""T5's relative positions: buckets of distances and a learned bias for each.

Raffel et al. 2020 (arXiv 1910.10683), section 2.1.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from panda_jax.errors import UserError
from panda_jax.types import Array


def relative_buckets(
    distances: np.ndarray,
    *,
    buckets: int,
    max_distance: int,
    bidirectional: bool,
) -> np.ndarray:
    """T5's bucket of each relative position (Raffel et al. 2020, 2.1).

    Half of the buckets are for single distances, the others grow with the
    logarithm; everything from `max_distance` on is in the last one.

    Args:
      distances: int, key position - query position, any shape.
      buckets: how many there are.
      max_distance: from which on all distances are one bucket.
      bidirectional: whether keys after the query have half of the buckets
        (encoder); otherwise they share the bucket of distance 0 (decoder).

    Returns:
      int32 in [0, buckets), shaped as `distances`.

    Raises:
      UserError: too few buckets for `max_distance` to lie past the single ones.
    """
    later = 0
    if bidirectional:
        buckets //= 2
        later = np.where(distances > 0, buckets, 0)
        distances = np.abs(distances)
    else:
        distances = np.maximum(-distances, 0)
    exact = buckets // 2
    if exact < 1 or max_distance <= exact:
        raise UserError(
            f"Relative positions have {buckets} buckets a direction and a "
            f"max_distance of {max_distance}, expected 2 or more buckets and "
            f"a max_distance above half of them. Correct the model's sizes."
        )
    # T5X adds the epsilon, so that a power of the base is never rounded below.
    ratio = np.maximum(distances, 1) / exact + np.finfo(np.float32).eps
    steps = np.log(ratio) / np.log(max_distance / exact) * (buckets - exact)
    far = np.minimum(exact + steps.astype(np.int32), buckets - 1)
    return (later + np.where(distances < exact, distances, far)).astype(
        np.int32
    )


class RelativeBias(nn.Module):
    """T5's learned attention bias by relative position, one table a stack."""

    heads: int
    buckets: int
    max_distance: int
    bidirectional: bool

    @nn.compact
    def __call__(
        self,
        queries: int,
        keys: int,
        *,
        first: int = 0,
        distances: Array | None = None,
    ) -> Array:
        """The bias of queries at `first`, `first + 1`, ... on keys at 0, 1, ...

        Args:
          queries: how many there are; static.
          keys: likewise.
          first: position of the first query.
          distances: [B, queries, keys] int32, key position - query position,
            where rows differ in them; none may be farther apart than the last
            query and the first key, or the other way round.

        Returns:
          [1, H, queries, keys] fp32, or [B, H, queries, keys].
        """
        table: Any = self.param(
            "rel_embedding",
            nn.with_logical_partitioning(
                nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
                ("heads", "relpos_buckets"),
            ),
            (self.heads, self.buckets),
            jnp.float32,
        )
        # A value a distance first: the [queries, keys] indices then need no
        # constant of that size in the program.
        last = first + queries - 1
        by_distance = jnp.asarray(table, jnp.float32)[
            :,
            relative_buckets(
                np.arange(-last, keys),
                buckets=self.buckets,
                max_distance=self.max_distance,
                bidirectional=self.bidirectional,
            ),
        ]
        if distances is not None:
            return jnp.moveaxis(by_distance[:, distances + last], 0, 1)
        query = first + jnp.arange(queries)[:, None]
        return by_distance[None, :, jnp.arange(keys) - query + last]
