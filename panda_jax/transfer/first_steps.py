"""The first-steps probe: a short fleet run from every source at once."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.config.runs import Run
from panda_jax.data.examples import AnyExamples
from panda_jax.parallel.sharding import Partitioner
from panda_jax.step import fleet, steps
from panda_jax.step.fleet import Lanes
from panda_jax.step.steps import Hyper, StepSpec, Trainable, TrainState
from panda_jax.store.backbones import Backbone
from panda_jax.store.prompt_folders import StoredPrompt
from panda_jax.training.lane import Lane, Needs
from panda_jax.training.step_inputs import MOST_STEPS, Assembly
from panda_jax.types import Array, Batch, Params

# Sources that are trained together.
_LANES = 64


def first_steps_losses(
    backbone: Backbone,
    run: Run,
    sources: Sequence[StoredPrompt],
    examples: AnyExamples,
    *,
    partitioner: Partitioner | None = None,
) -> np.ndarray:
    """The loss on left-out training rows after `run.steps` steps from each.

    Args:
      backbone: frozen.
      run: vanilla transfer to the target; its steps, rate and seed are every
        source's.
      sources: M prompts.
      examples: of the target's training split. The first half is learnt from,
        the rest is judged by; the order keeps the labels' proportions, row by
        row, so that every second one would be of one class.
      partitioner: how devices are shared out.

    Returns:
      [M] fp32, lower = better; NaN where the run diverged.
    """
    half = examples.questions // 2
    learnt = examples.subset(range(half))
    judged = examples.subset(range(half, examples.questions))
    run = dataclasses.replace(run, batch_size=min(run.batch_size, len(learnt)))
    return np.concatenate(
        [
            _together(
                backbone,
                run,
                sources[begin : begin + _LANES],
                learnt,
                judged,
                partitioner,
            )
            for begin in range(0, len(sources), _LANES)
        ]
    )


def _together(
    backbone: Backbone,
    run: Run,
    sources: Sequence[StoredPrompt],
    learnt: AnyExamples,
    judged: AnyExamples,
    partitioner: Partitioner | None,
) -> np.ndarray:
    lanes = [Lane(run, str(i), Needs(source=s)) for i, s in enumerate(sources)]
    parts = Assembly(backbone, lanes, learnt, partitioner=partitioner)
    states = _trained(parts)
    spec = dataclasses.replace(
        parts.step_spec, config=_without_dropout(parts.step_spec), layout=None
    )
    batch = judged.batch(np.arange(len(judged)))
    found = _losses(
        states.trainable,
        parts.frozen(),
        parts.place(batch),
        parts.hypers(),
        spec=spec,
        lanes=parts.layout,
    )
    ended = np.asarray(states.stopped)[: len(lanes)] >= 0
    return np.where(ended, np.nan, np.asarray(found)[: len(lanes)])


def _trained(parts: Assembly) -> TrainState:
    """The states after all steps, without evaluation, files or messages."""
    states, step = parts.start(), 0
    teachers = parts.load()
    frozen, hypers = parts.frozen(), parts.hypers()
    while step < parts.total:
        stop, begin = parts.next_stop(step), step
        position = parts.place(np.int32(step))
        for feed in parts.feeds(begin // parts.steps_per_epoch, begin, stop):
            last = int(jax.device_get(feed.last))
            while step < last:
                states, position, _ = parts.run_steps(
                    states, position, frozen, feed, teachers, hypers
                )
                step = min(step + MOST_STEPS, last)
    return states


def _without_dropout(spec: StepSpec) -> steps.Config:
    rates = [
        field.name
        for field in dataclasses.fields(spec.config)
        if field.name in ("dropout", "attention_dropout")
    ]
    return dataclasses.replace(spec.config, **dict.fromkeys(rates, 0.0))


@functools.partial(jax.jit, static_argnames=("spec", "lanes"))
def _losses(
    trained: Trainable,
    frozen: Params,
    batch: Batch,
    hypers: Hyper,
    *,
    spec: StepSpec,
    lanes: Lanes,
) -> Array:
    """[N] the task's loss of every lane on the same rows."""

    def one(trainable: Trainable, hyper: Hyper) -> Array:
        loss, _ = steps.loss_and_metrics(
            trainable, frozen, batch, None, None, hyper, hyper.key, spec=spec
        )
        return jnp.asarray(loss)

    return fleet.over_lanes(one, lanes, trained, hypers)
