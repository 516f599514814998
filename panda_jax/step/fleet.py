"""Lanes on a shared frozen backbone: the one place that maps over them.

A lane is one prompt with its teacher, hyper-parameters and batches. Arrays of
lanes lead with their axis N, which is split over the mesh's `data` axis; lanes
share nothing but the backbone, so no step moves anything between them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.models import decode
from panda_jax.prompts import Prompt
from panda_jax.step import steps
from panda_jax.step.steps import Hyper, Mixture, StepSpec, Trainable, TrainState
from panda_jax.types import (
    Array,
    ArrayLike,
    Batch,
    Params,
    PyTree,
    ScalarLike,
)


@dataclasses.dataclass(frozen=True)
class Lanes:
    """How lanes are computed; static.

    Attributes:
      groups: devices along the mesh's `data` axis.
      chunk: lanes that a device computes at a time, 0 for all.
    """

    groups: int = 1
    chunk: int = 1

    def padded(self, lanes: int) -> int:
        """The least multiple of `groups` that holds so many."""
        return -(-lanes // self.groups) * self.groups


class Feed(NamedTuple):
    """The data of a stretch of steps, on the device.

    Attributes:
      data: E examples, as one batch of all; None where rows are packed.
      taught: [N, E, ...] cached teachers' logits, or None.
      order: [S, N, B] int32, the examples of each step.
      first: the step that `order` begins with.
      last: the step before which to end.
    """

    data: Batch | None
    taught: ArrayLike | None
    order: ArrayLike
    first: ScalarLike
    last: ScalarLike


def over_lanes(
    function: Callable[..., Any], lanes: Lanes, *arguments: PyTree
) -> Any:
    """`function` of each lane's arguments; [N, ...] to [N, ...].

    Device groups are computed side by side, their lanes in chunks.
    """

    def group(arguments: PyTree) -> Any:
        here = jax.tree.leaves(arguments)[0].shape[0]
        if here == 1:
            only = function(*jax.tree.map(lambda x: x[0], arguments))
            return jax.tree.map(lambda x: jnp.asarray(x)[None], only)
        if lanes.chunk in (0, here):
            return jax.vmap(function)(*arguments)
        size = None if lanes.chunk == 1 else lanes.chunk
        return jax.lax.map(lambda a: function(*a), arguments, batch_size=size)

    if lanes.groups == 1:
        return group(arguments)

    def split(x: Array) -> Array:
        return x.reshape(lanes.groups, x.shape[0] // lanes.groups, *x.shape[1:])

    found = jax.vmap(group, spmd_axis_name="data")(
        jax.tree.map(split, arguments)
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


@functools.partial(
    jax.jit,
    static_argnames=("spec", "lanes", "most", "layout"),
    donate_argnames=("states",),
)
def run_steps(
    states: TrainState,
    position: ArrayLike,
    frozen: Params,
    feed: Feed,
    teachers: Prompt | Mixture | None,
    hypers: Hyper,
    *,
    spec: StepSpec,
    lanes: Lanes,
    most: int,
    layout: tuple[jax.sharding.Sharding, ...] | None = None,
) -> tuple[TrainState, Array, dict[str, Array]]:
    """Up to `most` steps of every lane in one dispatch. Donates `states`.

    Args:
      states: of N lanes.
      position: steps done. Every lane's `step` says so too, but reading one
        lane's would send it to all devices.
      frozen: the backbone.
      feed: their data; steps go on to its last.
      teachers: of N lanes, where they run online.
      hypers: of N lanes.
      spec: static.
      lanes: static.
      most: static.
      layout: where each leaf of the states stays; else XLA may choose another,
        and the next dispatch compiles again.

    Returns:
      The states, the position, and metrics [most, N], zero beyond the last
      step.
    """
    begin = jnp.asarray(position)
    first, last = jnp.asarray(feed.first), jnp.asarray(feed.last)

    def one(
        states: TrainState,
        batch: Batch,
        taught: ArrayLike | None,
        teacher: Prompt | Mixture | None,
        hyper: Hyper,
    ) -> tuple[TrainState, dict[str, Array]]:
        return steps.update(
            states, frozen, batch, taught, teacher, hyper, spec=spec
        )

    def step(states: TrainState, number: Array) -> Any:
        rows = jnp.asarray(feed.order)[number - first]
        batches = jax.tree.map(lambda x: jnp.asarray(x)[rows], feed.data)
        taught = None
        if feed.taught is not None:
            taught = jax.vmap(lambda x, at: x[at])(feed.taught, rows)
        return over_lanes(one, lanes, states, batches, taught, teachers, hypers)

    def body(number: Array, carry: Any) -> Any:
        states, metrics = carry
        states, new = step(states, number)
        if layout is not None:
            leaves, treedef = jax.tree.flatten(states)
            leaves = jax.lax.with_sharding_constraint(leaves, list(layout))
            states = jax.tree.unflatten(treedef, leaves)
        at = number - begin
        metrics = {k: x.at[at].set(new.pop(k)) for k, x in metrics.items()}
        assert not new, f"steps.METRICS lacks {sorted(new)}"
        return states, metrics

    # Shapes by tracing the step would be half of a start's tracing.
    shape = (most, *states.step.shape)
    metrics = {name: jnp.zeros(shape, jnp.float32) for name in steps.METRICS}
    end = jnp.minimum(begin + most, last)
    states, metrics = jax.lax.fori_loop(begin, end, body, (states, metrics))
    return states, end, metrics


# To compile it ahead of its first call, which finds it compiled.
lower_steps = run_steps.lower


@functools.partial(
    jax.jit, static_argnames=("config", "lanes", "per_token", "best")
)
def predict(
    trained: Trainable,
    frozen: Params,
    tokens: ArrayLike,
    segments: ArrayLike,
    *,
    config: Any,
    lanes: Lanes,
    per_token: bool = False,
    best: bool = False,
) -> Array:
    """`steps.predict_step` of every lane on the same rows: [N, B, ...]."""

    def one(lane: Trainable) -> Array:
        return steps.predict_step(
            frozen if lane.backbone is None else lane.backbone,
            tokens,
            segments,
            lane.prompt,
            config=config,
            per_token=per_token,
            best=best,
        )

    return over_lanes(one, lanes, trained)


@functools.partial(jax.jit, static_argnames=("config", "lanes"))
def rank(
    trained: Trainable,
    frozen: Params,
    inputs: ArrayLike,
    *,
    labels: ArrayLike,
    config: Any,
    lanes: Lanes,
) -> Array:
    """`decode.rank` of every lane: [N, B, C]."""

    def one(lane: Trainable) -> Array:
        weights = frozen if lane.backbone is None else lane.backbone
        return decode.rank(weights, inputs, lane.prompt, labels, config=config)

    return over_lanes(one, lanes, trained)


@functools.partial(jax.jit, static_argnames=("config", "lanes", "steps"))
def write(
    trained: Trainable,
    frozen: Params,
    inputs: ArrayLike,
    *,
    steps: int,
    config: Any,
    lanes: Lanes,
) -> Array:
    """`decode.greedy` of every lane: [N, B, steps]."""

    def one(lane: Trainable) -> Array:
        weights = frozen if lane.backbone is None else lane.backbone
        return decode.greedy(weights, config, inputs, lane.prompt, steps=steps)

    return over_lanes(one, lanes, trained)


@functools.partial(jax.jit, donate_argnames=("states",))
def stop(states: TrainState, which: ArrayLike) -> TrainState:
    """Lets lanes learn no more. `which` [N] bool; donates `states`."""
    now = jnp.asarray(which) & (states.stopped < 0)
    return states._replace(stopped=jnp.where(now, states.step, states.stopped))


def stack(trees: list[PyTree], *, length: int) -> PyTree:
    """Lanes' trees as one; the first again up to `length`, for even groups."""
    trees = [*trees, *trees[:1] * (length - len(trees))]
    return jax.tree.map(lambda *leaves: _stacked(leaves), *trees)


def _stacked(leaves: tuple[Any, ...]) -> Any:
    if len(leaves) == 1:
        return jnp.asarray(leaves[0])[None]
    first = leaves[0]
    if isinstance(first, jax.Array) and jnp.issubdtype(
        first.dtype, jax.dtypes.prng_key
    ):
        return jnp.stack(leaves)
    return np.stack([np.asarray(leaf) for leaf in leaves])
