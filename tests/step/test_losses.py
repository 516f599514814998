"""The objective against torch, and the released code's formula in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from panda_jax.config import runs
from panda_jax.step import losses

KINDS = ["classification", "regression", "choice", "tags", "span"]
B, K, T, C = 4, 3, 6, 5


def sample(rng, kind):
    """Logits of student and teacher as the model gives them, labels, tokens.

    Some tokens are padding, some words unlabelled, some candidates absent,
    and one question has two right candidates.
    """
    shape = {
        "classification": (B, C),
        "regression": (B, 1),
        "choice": (B * K, 1),
        "tags": (B, T, C),
        "span": (B, T, 2),
    }[kind]
    student, teacher = 3 * rng.normal(size=(2, *shape)).astype(np.float32)
    tokens = rng.integers(1, 90, size=(B, T)).astype(np.int32)
    tokens[0, 4:] = 0
    labels = {
        "classification": rng.integers(0, C, B),
        "regression": rng.normal(size=B).astype(np.float32),
        "choice": np.array([[1, 0, 0], [0, 1, 1], [0, 1, -1], [0, 0, 1]]),
        "tags": np.where(tokens > 40, rng.integers(0, C, (B, T)), -1),
        "span": np.array([[0, 3], [1, 1], [0, 0], [2, 5]]),
    }[kind]
    if kind != "regression":
        labels = labels.astype(np.int32)
    tokens = np.repeat(tokens, K, axis=0) if kind == "choice" else tokens
    return student, teacher, labels, tokens


def distributions(logits, labels, tokens, kind):
    """Each choice that is made, as torch logits without what is not offered."""
    logits = torch.tensor(logits)
    if kind == "choice":
        rows = logits.reshape(B, K)
        return [rows[i][torch.tensor(labels[i] >= 0)] for i in range(B)]
    if kind == "tags":
        return [logits[i, t] for i, t in np.argwhere(labels >= 0)]
    if kind == "span":
        return [
            logits[i, torch.tensor(tokens[i] != 0), end]
            for i in range(B)
            for end in (0, 1)
        ]
    return list(logits)


def right_ones(labels, kind):
    if kind == "choice":
        return [np.flatnonzero(row == 1) for row in labels]
    if kind == "tags":
        return [[label] for label in labels[labels >= 0]]
    return [[label] for label in labels.ravel()]


def scored(logits, labels, tokens, kind):
    return losses.scored(
        jnp.asarray(logits),
        jnp.asarray(labels),
        jnp.asarray(tokens),
        kind=kind,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_task_loss_equals_torch(rng, kind):
    student, _, labels, tokens = sample(rng, kind)
    if kind == "regression":
        theirs = torch.nn.MSELoss()(
            torch.tensor(student).squeeze(), torch.tensor(labels)
        )
    else:
        rows = distributions(student, labels, tokens, kind)
        right = right_ones(labels, kind)
        theirs = torch.stack(
            [
                -torch.log(torch.softmax(row, -1)[list(some)].sum())
                for row, some in zip(rows, right, strict=True)
            ]
        ).mean()
    ours = losses.task_loss(
        scored(student, labels, tokens, kind), jnp.asarray(labels), kind=kind
    )
    assert float(ours) == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_kd_equals_torch(rng, kind):
    student, teacher, labels, tokens = sample(rng, kind)
    ours = scored(student, labels, tokens, kind)
    taught = scored(teacher, labels, tokens, kind).logits
    pairs = list(
        zip(
            distributions(student, labels, tokens, kind),
            distributions(teacher, labels, tokens, kind),
            strict=True,
        )
    )
    mse = torch.cat([(s - t) ** 2 for s, t in pairs]).mean()
    got = losses.kd_loss(ours, taught, form="mse", temperature=2.0)
    assert float(got) == pytest.approx(mse.item(), rel=1e-5)
    if kind == "regression":  # one output has no distribution
        again = losses.kd_loss(ours, taught, form="kl", temperature=2.0)
        assert float(again) == float(got)
        return
    temperature = 3.0
    kl = [
        torch.nn.functional.kl_div(
            torch.log_softmax(s / temperature, -1),
            torch.softmax(t / temperature, -1),
            reduction="sum",
        )
        for s, t in pairs
    ]
    theirs = temperature**2 * torch.stack(kl).mean()
    got = losses.kd_loss(ours, taught, form="kl", temperature=temperature)
    assert float(got) == pytest.approx(theirs.item(), rel=1e-5)
    same = [int(s.argmax() == t.argmax()) for s, t in pairs]
    agreement = losses.agreement(ours, taught)
    assert float(agreement) == pytest.approx(np.mean(same))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_offered_has_no_gradient(rng, kind):
    student, teacher, labels, tokens = sample(rng, kind)

    def loss(student, teacher):
        rows = scored(student, labels, tokens, kind)
        taught = scored(teacher, labels, tokens, kind).logits
        total = losses.task_loss(rows, jnp.asarray(labels), kind=kind)
        for form in ("mse", "kl"):
            total += losses.kd_loss(rows, taught, form=form, temperature=2.0)
        return total

    to_student, to_teacher = jax.grad(loss, argnums=(0, 1))(student, teacher)
    assert np.isfinite(to_student).all()
    np.testing.assert_array_equal(to_teacher, 0.0)
    offered = {
        "choice": (labels >= 0).reshape(-1, 1),
        "tags": (labels >= 0)[..., None],
        "span": (tokens != 0)[..., None],
    }.get(kind, np.ones((B, 1), bool))
    offered = np.broadcast_to(offered, student.shape)
    np.testing.assert_array_equal(np.asarray(to_student)[~offered], 0.0)
    assert (np.asarray(to_student)[offered] != 0).mean() > 0.9


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_released_loss_equals_torch(rng, classes):
    batch, beta = 16, 0.1
    student, teacher = 3 * rng.normal(size=(2, batch, classes))
    student, teacher = student.astype(np.float32), teacher.astype(np.float32)
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
    tokens = np.ones((batch, 2), np.int32)
    rows = scored(student, labels, tokens, kind)
    ours = losses.panda_loss(
        losses.task_loss(rows, jnp.asarray(labels), kind=kind),
        losses.kd_loss(rows, jnp.asarray(teacher), form="mse", temperature=1.0),
        losses.released_weight(beta, batch),
    )
    assert float(ours) == pytest.approx(theirs.item(), abs=1e-6)


def test_released_weight_is_the_brief_s_figure():
    run = runs.make_run(task="cb", method="panda", recipe="released")
    weight = losses.released_weight(run.kd_beta, run.batch_size)
    assert weight == pytest.approx(0.000625)


@pytest.mark.parametrize("form", ["mse", "kl"])
@pytest.mark.parametrize("kind", KINDS)
def test_kd_is_zero_with_zero_gradient_when_student_is_teacher(rng, form, kind):
    _, teacher, labels, tokens = sample(rng, kind)
    taught = scored(teacher, labels, tokens, kind).logits

    def loss(student):
        rows = scored(student, labels, tokens, kind)
        return losses.kd_loss(rows, taught, form=form, temperature=2.0)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(teacher))
    assert float(value) == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_a_batch_without_any_label_costs_nothing(rng):
    student, teacher, labels, tokens = sample(rng, "tags")
    labels = np.full_like(labels, -1)
    rows = scored(student, labels, tokens, "tags")
    loss = losses.task_loss(rows, jnp.asarray(labels), kind="tags")
    assert float(loss) == 0.0
    taught = scored(teacher, labels, tokens, "tags").logits
    for form in ("mse", "kl"):
        kd = losses.kd_loss(rows, taught, form=form, temperature=2.0)
        assert float(kd) == 0.0
