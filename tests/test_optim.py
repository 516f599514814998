"""The update rule against torch's AdamW with clipping and linear decay."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from panda_jax import UserError, optim, runs


def test_twelve_updates_equal_torch(rng):
    total, peak, decay = 12, 1e-2, 0.05
    start = rng.normal(size=(5, 3)).astype(np.float32)
    gradients = rng.normal(size=(total, 5, 3)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(start))
    adam = torch.optim.AdamW([theirs], lr=peak, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: 1 - step / total
    )
    transform = optim.transform(clip=1.0)
    ours = {"w": jnp.asarray(start)}
    state = transform.init(ours)
    for step, gradient in enumerate(gradients):
        theirs.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        adam.step()
        schedule.step()
        direction, state = transform.update({"w": jnp.asarray(gradient)}, state)
        rate = rate_at(step, "linear", total=total, peak=peak)
        ours = optim.apply(ours, direction, rate=rate, weight_decay=decay)
    np.testing.assert_allclose(ours["w"], theirs.detach().numpy(), atol=2e-6)
    assert np.abs(ours["w"] - start).max() > 0.01


def rate_at(step, schedule, *, total=12, epoch_steps=4, peak=0.5):
    numbers = optim.schedule_numbers(
        schedule, total=total, epoch_steps=epoch_steps
    )
    return optim.learning_rate(
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
    for schedule in runs.SCHEDULES:
        optim.schedule_numbers(schedule, total=1, epoch_steps=1)
    with pytest.raises(UserError, match="linear"):
        optim.schedule_numbers("linaer", total=1, epoch_steps=1)
