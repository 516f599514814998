"""The objective against the released code's formula, evaluated in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from panda_jax import losses, runs


@pytest.mark.parametrize(("classes", "batch"), [(2, 16), (3, 16), (1, 8)])
def test_released_loss_equals_torch(rng, classes, batch):
    student = rng.normal(size=(batch, classes)).astype(np.float32) * 3
    teacher = rng.normal(size=(batch, classes)).astype(np.float32) * 3
    beta = 0.1
    if classes == 1:
        labels = rng.normal(size=batch).astype(np.float32)
        task = torch.nn.MSELoss()(
            torch.tensor(student).squeeze(), torch.tensor(labels)
        )
        kind = "regression"
    else:
        labels = rng.integers(0, classes, size=batch).astype(np.int32)
        task = torch.nn.CrossEntropyLoss()(
            torch.tensor(student), torch.tensor(labels).long()
        )
        kind = "classification"
    distance = torch.nn.MSELoss()(torch.tensor(student), torch.tensor(teacher))
    theirs = task + 0.1 * beta * distance / batch
    ours = losses.panda_loss(
        losses.task_loss(jnp.asarray(student), jnp.asarray(labels), kind=kind),
        losses.kd_mse(jnp.asarray(student), jnp.asarray(teacher)),
        losses.released_weight(beta, batch),
    )
    assert float(ours) == pytest.approx(theirs.item(), abs=1e-6)


def test_released_weight_is_the_brief_s_figure():
    run = runs.make_run(task="cb", method="panda", recipe="released")
    weight = losses.released_weight(run.kd_beta, run.batch_size)
    assert weight == pytest.approx(0.000625)


@pytest.mark.parametrize("form", ["mse", "kl"])
def test_kd_is_zero_with_zero_gradient_when_student_is_teacher(rng, form):
    logits = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    value, gradient = jax.value_and_grad(
        lambda s: losses.kd_loss(s, logits, form=form, temperature=2.0)
    )(logits)
    assert float(value) == pytest.approx(0.0, abs=1e-7)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)


@pytest.mark.parametrize("form", ["mse", "kl"])
def test_the_teacher_gets_no_gradient(rng, form):
    student, teacher = jnp.asarray(rng.normal(size=(2, 8, 3)), jnp.float32)

    def loss(student, teacher):
        return losses.kd_loss(student, teacher, form=form, temperature=2.0)

    to_student, to_teacher = jax.grad(loss, argnums=(0, 1))(student, teacher)
    assert float(jnp.abs(to_student).max()) > 0
    np.testing.assert_array_equal(to_teacher, 0.0)


def test_kl_equals_torch(rng):
    student, teacher = rng.normal(size=(2, 8, 3)).astype(np.float32)
    temperature = 3.0
    theirs = temperature**2 * torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor(student) / temperature, -1),
        torch.softmax(torch.tensor(teacher) / temperature, -1),
        reduction="batchmean",
    )
    ours = losses.kd_kl(
        jnp.asarray(student), jnp.asarray(teacher), temperature=temperature
    )
    assert float(ours) == pytest.approx(theirs.item(), rel=1e-5)


def test_kl_of_one_output_is_the_squared_error(rng):
    student, teacher = jnp.asarray(rng.normal(size=(2, 8, 1)), jnp.float32)
    assert losses.kd_loss(
        student, teacher, form="kl", temperature=2.0
    ) == losses.kd_mse(student, teacher)
