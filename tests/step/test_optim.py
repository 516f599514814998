"""The update rules against torch, optax and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import update_rules

from panda_jax import UserError
from panda_jax.config import registry
from panda_jax.step import optimizers

# Of several sizes and scales: what holds of one need not hold of all.
SHAPES = {"vectors": (2, 3, 4), "kernel": (5, 3), "bias": (3,)}
SCALES = {"vectors": 0.02, "kernel": 3.0, "bias": 40.0}


def leaves(rng, *outer):
    return {
        name: rng.normal(size=(*outer, *shape)).astype(np.float32)
        * np.float32(SCALES[name])
        for name, shape in SHAPES.items()
    }


def updated(optimizer, start, gradients, *, rates, weight_decay, clip):
    """After each of our updates of the whole tree."""
    transform = optimizers.transform(optimizer, clip=clip)
    ours = jax.tree.map(jnp.asarray, start)
    state = transform.init(ours)
    for step, rate in enumerate(rates):
        gradient = {name: jnp.asarray(g[step]) for name, g in gradients.items()}
        direction, state = transform.update(gradient, state, ours)
        ours = optimizers.apply(
            ours,
            direction,
            rate=jnp.float32(rate),
            weight_decay=jnp.float32(weight_decay),
            optimizer=optimizer,
        )
    return ours


# Never, at most steps, always.
@pytest.mark.parametrize("clip", [1e6, 100.0, 1.0, 0.05])
def test_twelve_updates_equal_torch(rng, clip):
    total, peak, decay = 12, 1e-2, 0.05
    start, gradients = leaves(rng), leaves(rng, total)
    # A leaf's own norm is not that of all: the last steps are of one's.
    gradients["kernel"][8:] *= 1e-3
    gradients["bias"][8:] *= 1e-3
    theirs = {
        name: torch.nn.Parameter(torch.tensor(x)) for name, x in start.items()
    }
    adam = torch.optim.AdamW(theirs.values(), lr=peak, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: 1 - step / total
    )
    for step in range(total):
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name][step])
        torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        adam.step()
        schedule.step()
    rates = [
        rate_at(step, "linear", total=total, peak=peak) for step in range(total)
    ]
    ours = updated(
        "adamw", start, gradients, rates=rates, weight_decay=decay, clip=clip
    )
    for name, parameter in theirs.items():
        np.testing.assert_allclose(
            ours[name], parameter.detach().numpy(), rtol=1e-6, atol=2e-6
        )
        assert np.abs(ours[name] - start[name]).max() > 0.01


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
@pytest.mark.parametrize("clip", [1e6, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_both_rules_equal_numpy(rng, optimizer, clip, weight_decay):
    """At rates that change; Adafactor's decay must not follow them."""
    rates = 0.3 * 0.7 ** np.arange(7)
    start, gradients = leaves(rng), leaves(rng, len(rates))
    # Gradients that shrink by far and grow again, so that updates are clipped.
    size = np.array([1.0, 1e-3, 1e-3, 5.0, 1e-2, 30.0, 1.0], np.float32)
    for array in gradients.values():
        array *= size.reshape(-1, *[1] * (array.ndim - 1))
    rule = getattr(update_rules, optimizer)
    wanted = rule(
        list(start.values()),
        lambda step, _: [
            g[step].astype(np.float64) for g in gradients.values()
        ],
        rates=rates,
        weight_decay=weight_decay,
        clip=clip,
    )
    ours = updated(
        optimizer,
        start,
        gradients,
        rates=rates,
        weight_decay=weight_decay,
        clip=clip,
    )
    for name, array in zip(start, wanted, strict=True):
        np.testing.assert_allclose(ours[name], array, rtol=2e-5, atol=2e-5)


def test_adafactor_is_that_of_optax(rng):
    """Its own composition, at the settings of T5X's prompt-tuning."""
    start, gradients = leaves(rng), leaves(rng, 6)
    theirs = optax.adafactor(
        0.3,
        factored=False,
        multiply_by_parameter_scale=False,
        decay_rate=0.8,
        clipping_threshold=1.0,
        weight_decay_rate=0.01,
    )
    params = jax.tree.map(jnp.asarray, start)
    state = theirs.init(params)
    for step in range(6):
        gradient = {name: jnp.asarray(g[step]) for name, g in gradients.items()}
        moved, state = theirs.update(gradient, state, params)
        params = optax.apply_updates(params, moved)
    ours = updated(
        "adafactor",
        start,
        gradients,
        rates=[0.3] * 6,
        weight_decay=0.01,
        clip=1e9,
    )
    for name in start:
        np.testing.assert_allclose(
            ours[name], params[name], rtol=2e-5, atol=2e-6
        )


def rate_at(step, schedule, *, total=12, epoch_steps=4, peak=0.5):
    numbers = optimizers.schedule_numbers(
        schedule, total=total, epoch_steps=epoch_steps
    )
    return optimizers.learning_rate(
        jnp.float32(peak),
        jnp.int32(step),
        total=jnp.float32(numbers["total_steps"]),
        epoch_decay=jnp.float32(numbers["epoch_decay"]),
        epoch_steps=jnp.float32(numbers["epoch_steps"]),
    )


def test_numbers_choose_the_schedule():
    constant = [rate_at(step, "constant") for step in (0, 7, 10**6)]
    assert constant == [0.5, 0.5, 0.5]
    exponential = [rate_at(step, "exponential") for step in (0, 3, 4, 11)]
    wanted = [0.5, 0.5, 0.5 * 0.95, 0.5 * 0.95**2]
    np.testing.assert_allclose(exponential, wanted, rtol=1e-6)
    linear = [rate_at(step, "linear") for step in (0, 6, 12, 13)]
    np.testing.assert_allclose(linear, [0.5, 0.25, 0, 0], atol=1e-7)


def test_unknown_schedule():
    for schedule in registry.SCHEDULES:
        optimizers.schedule_numbers(schedule, total=1, epoch_steps=1)
    with pytest.raises(UserError, match="linear"):
        optimizers.schedule_numbers("linaer", total=1, epoch_steps=1)
