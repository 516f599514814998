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
        rate = optim.learning_rate(
            jnp.float32(peak),
            jnp.int32(step),
            jnp.float32(total),
            schedule="linear",
        )
        ours = optim.apply(ours, direction, rate=rate, weight_decay=decay)
    np.testing.assert_allclose(ours["w"], theirs.detach().numpy(), atol=2e-6)
    assert np.abs(ours["w"] - start).max() > 0.01


def test_unknown_schedule():
    assert runs.SCHEDULES == optim.SCHEDULES
    with pytest.raises(UserError, match="linear"):
        optim.learning_rate(jnp.ones(()), 0, 1, schedule="linaer")  # type: ignore
