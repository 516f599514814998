"""What the step may change, and what it must not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import update_rules
from stepping import train_step

from panda_jax.models import bert
from panda_jax.prompts import Prompt, fresh_head, normal_vectors
from panda_jax.step import losses as losses_module
from panda_jax.step import steps
from panda_jax.store.backbones import Backbone
from panda_jax.types import Batch

CLASSES = 3
loss_and_metrics = jax.jit(steps.loss_and_metrics, static_argnames=("spec",))
gradient_of = jax.jit(steps._gradient, static_argnames=("spec",))


def make_prompt(backbone: Backbone, seed: int, kind: str = "deep") -> Prompt:
    c = backbone.config
    shape = {
        "deep": (c.layers, 2, 4, c.heads, c.head_dim),
        "shallow": (4, c.width),
    }[kind]
    key = jax.random.key(seed)
    return Prompt(
        normal_vectors(key, shape, stddev=0.5),
        fresh_head(key, c.width, CLASSES, stddev=0.5),
    )


def make_batch(seed: int = 0, size: int = 8) -> Batch:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 90, size=(size, 12)).astype(np.int32)
    tokens[0, 7:] = 0
    return Batch(
        tokens,
        (np.arange(12) > 5).astype(np.int32) * np.ones((size, 1), np.int32),
        rng.integers(0, CLASSES, size=size).astype(np.int32),
    )


def make_hyper(weight: float, rate: float = 1e-2) -> steps.Hyper:
    return steps.Hyper(
        np.float32(rate),
        np.float32(0),
        np.float32(100),
        np.float32(weight),
        jax.random.key(7),
    )


def loss_of(trainable, backbone, *, teacher_logits, teacher, weight, spec):
    return steps.loss_and_metrics(
        trainable,
        backbone.params,
        make_batch(),
        teacher_logits,
        teacher,
        make_hyper(weight),
        jax.random.key(0),
        spec=spec,
    )[0]


@pytest.mark.parametrize("kind", ["deep", "shallow"])
def test_steps_lower_the_loss_and_leave_the_backbone(tiny, kind):
    before = jax.tree.map(lambda x: np.array(x, copy=True), tiny.params)
    config = dataclasses.replace(
        tiny.config, dropout=0.0, attention_dropout=0.0
    )
    spec = steps.StepSpec(config, "classification")
    state = steps.init_state(steps.Trainable(make_prompt(tiny, 0, kind)))
    start = jax.device_get(state.trainable.prompt.vectors)
    losses: list[float] = []
    for _ in range(60):
        state, metrics = train_step(
            state,
            tiny.params,
            make_batch(),
            np.zeros((8, CLASSES), np.float32),
            None,
            make_hyper(0.0, rate=3e-2),
            spec=spec,
        )
        losses.append(float(metrics["task_loss"]))
    assert losses[-1] < losses[0] - 0.05
    assert int(state.step) == 60
    assert np.abs(state.trainable.prompt.vectors - start).max() > 0
    for old, new in zip(
        jax.tree.leaves(before), jax.tree.leaves(tiny.params), strict=True
    ):
        np.testing.assert_array_equal(old, new)


def test_optimizer_state_is_two_moments_and_counters(tiny):
    prompt = make_prompt(tiny, 0)
    state = steps.init_state(steps.Trainable(prompt))
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(state.opt_state)]
    trained = sum(np.size(leaf) for leaf in jax.tree.leaves(prompt))
    counters = [size for size in sizes if size == 1]
    assert sum(sizes) - len(counters) == 2 * trained
    assert len(counters) == 1


def test_weight_zero_is_prompt_tuning_bit_for_bit(tiny, rng):
    spec = steps.StepSpec(tiny.config, "classification")
    after = []
    for logits in (np.zeros((8, CLASSES)), 9 * rng.normal(size=(8, CLASSES))):
        state = steps.init_state(steps.Trainable(make_prompt(tiny, 0)))
        state, _ = train_step(
            state,
            tiny.params,
            make_batch(),
            logits.astype(np.float32),
            None,
            make_hyper(0.0),
            spec=spec,
        )
        after.append(state.trainable.prompt.vectors)
    np.testing.assert_array_equal(*after)


def test_cached_and_online_teacher_agree_without_dropout(tiny):
    config = dataclasses.replace(
        tiny.config, dropout=0.0, attention_dropout=0.0
    )
    spec = steps.StepSpec(config, "classification")
    teacher, student = make_prompt(tiny, 1), make_prompt(tiny, 2)
    batch = make_batch()
    cached = steps.predict_step(
        tiny.params, batch.tokens, batch.segments, teacher, config=config
    )
    common = {"backbone": tiny, "weight": 0.7, "spec": spec}
    trainable = steps.Trainable(student)
    from_cache = loss_of(
        trainable, teacher_logits=cached, teacher=None, **common
    )
    online = loss_of(trainable, teacher_logits=None, teacher=teacher, **common)
    none = loss_of(
        trainable,
        teacher_logits=cached,
        teacher=None,
        **{**common, "weight": 0.0},
    )
    assert float(from_cache) == pytest.approx(float(online), rel=1e-5)
    assert float(from_cache) > float(none)


def test_no_gradient_reaches_the_online_teacher(tiny):
    spec = steps.StepSpec(tiny.config, "classification")
    gradient = jax.grad(
        lambda teacher: loss_of(
            steps.Trainable(make_prompt(tiny, 2)),
            tiny,
            teacher_logits=None,
            teacher=teacher,
            weight=1.0,
            spec=spec,
        )
    )(make_prompt(tiny, 1))
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0.0)


def test_student_equal_to_teacher_has_no_kd(tiny):
    """Without dropout; the gradient is that of weight 0."""
    config = dataclasses.replace(
        tiny.config, dropout=0.0, attention_dropout=0.0
    )
    spec = steps.StepSpec(config, "classification")
    prompt = make_prompt(tiny, 1)

    def gradient(weight: float):
        return jax.grad(loss_of)(
            steps.Trainable(prompt),
            tiny,
            teacher_logits=None,
            teacher=prompt,
            weight=weight,
            spec=spec,
        )

    for with_kd, without in zip(
        jax.tree.leaves(gradient(5.0)),
        jax.tree.leaves(gradient(0.0)),
        strict=True,
    ):
        np.testing.assert_allclose(with_kd, without, atol=1e-6)


def test_probe_reads_text_positions_under_both_kinds(tiny):
    batch = make_batch()
    for kind in ("deep", "shallow"):
        found = steps.probe(
            tiny.params,
            batch.tokens,
            batch.segments,
            make_prompt(tiny, 0, kind).vectors,
            config=tiny.config,
        )
        c = tiny.config
        assert found["mean"].shape == (8, c.width)
        assert found["hidden"].shape == (*batch.tokens.shape, c.width)
        # The mean of the last layer's output, computed inside the scan.
        np.testing.assert_allclose(
            found["layers"][-1], found["mean"], atol=1e-6
        )
        assert found["neurons"].shape == (c.layers, 8, c.ffn)
        assert jnp.isfinite(found["first"]).all()


def test_a_teacher_s_dropout_is_the_spec_s_choice(tiny):
    """With it every key gives another loss, without it the same teacher."""
    c = tiny.config
    quiet = dataclasses.replace(c, dropout=0.0, attention_dropout=0.0)
    teacher, student = make_prompt(tiny, 1), make_prompt(tiny, 2)

    def kd(key: int, dropout: bool, config=c) -> float:
        return float(
            steps.loss_and_metrics(
                steps.Trainable(student),
                tiny.params,
                make_batch(),
                None,
                teacher,
                make_hyper(1.0),
                jax.random.key(key),
                spec=steps.StepSpec(
                    config, "classification", teacher_dropout=dropout
                ),
            )[1]["kd_loss"]
        )

    assert kd(0, True) != kd(0, False)
    assert kd(0, False, quiet) == kd(1, False, quiet) == kd(0, True, quiet)


@pytest.mark.parametrize("kind", ["deep", "shallow"])
def test_a_head_that_reads_tokens_sees_the_text_alone(tiny, kind):
    batch, prompt = make_batch(), make_prompt(tiny, 0, kind)
    logits, aux = bert.apply(
        tiny.params,
        tiny.config,
        batch.tokens,
        batch.segments,
        prompt,
        per_token=True,
    )
    text = np.asarray(aux["hidden"])[:, -batch.tokens.shape[1] :]
    want = text @ np.asarray(prompt.head["kernel"]) + prompt.head["bias"]
    np.testing.assert_allclose(logits, want, atol=1e-5)
    best = steps.predict_step(
        tiny.params,
        batch.tokens,
        batch.segments,
        prompt,
        config=tiny.config,
        per_token=True,
        best=True,
    )
    np.testing.assert_array_equal(best, want.argmax(-1))
    broken = dataclasses.replace(
        prompt, head={**prompt.head, "bias": jnp.full((CLASSES,), jnp.nan)}
    )
    lost = steps.predict_step(
        tiny.params,
        batch.tokens,
        batch.segments,
        broken,
        config=tiny.config,
        per_token=True,
        best=True,
    )
    assert (np.asarray(lost) == -1).all()


def unequal_batch(kind: str, rng: np.random.Generator) -> Batch:
    """Four rows of which the first two have most that counts."""
    tokens = rng.integers(1, 90, size=(4, 12)).astype(np.int32)
    tokens[2:, 4:] = 0
    if kind == "choice":
        tokens = np.repeat(tokens[:, None], 3, axis=1)
        labels = np.array([[1, 0, 0], [0, 1, 0], [1, -1, -1], [0, 1, -1]])
    elif kind == "tags":
        labels = rng.integers(0, CLASSES, size=(4, 12))
        labels[1:, 2:] = -1
        labels[3] = -1
    else:
        labels = np.array([[2, 3], [1, 5], [1, 1], [0, 2]])
    return Batch(tokens, 0 * tokens, labels.astype(np.int32))


@pytest.mark.parametrize("form", ["mse", "kl"])
@pytest.mark.parametrize(
    ("kind", "outputs"), [("tags", CLASSES), ("span", 2), ("choice", 1)]
)
def test_parts_that_are_unequal_add_up_to_the_batch(
    tiny, rng, kind, outputs, form
):
    config = dataclasses.replace(
        tiny.config, dropout=0.0, attention_dropout=0.0
    )
    batch = unequal_batch(kind, rng)
    prompt = Prompt(
        make_prompt(tiny, 0).vectors,
        fresh_head(jax.random.key(1), tiny.config.width, outputs),
    )
    shape = (12, 1) if kind == "choice" else (4, 12, outputs)
    logits = rng.normal(size=shape).astype(np.float32)
    found = [
        steps._gradient(
            steps.Trainable(prompt),
            tiny.params,
            batch,
            logits,
            None,
            make_hyper(0.7),
            jax.random.key(0),
            spec=steps.StepSpec(config, kind, kd_form=form, accumulate=parts),
        )
        for parts in (1, 2)
    ]
    assert float(found[0][1]["kd_loss"]) > 0
    for whole, parts in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)


def test_pieces_of_text_count_by_the_batch():
    labels = np.array([[[5, 6, 1], [7, 1, 0]], [[1, 0, 0], [0, 0, 0]]])
    tokens = np.ones((2, 2, 4), np.int32)
    shares = losses_module.shares(labels, tokens, kind="text")
    np.testing.assert_allclose(shares.rows, [5 / 3, 1 / 3])
    np.testing.assert_allclose(shares.entries, [5 / 3, 1 / 3])
    empty = losses_module.shares(0 * labels, tokens, kind="text")
    np.testing.assert_array_equal(empty.rows, [0, 0])


def hyper_at(**changes) -> steps.Hyper:
    """No scalar at a value that could be left out."""
    numbers = {
        "learning_rate": 0.02,
        "weight_decay": 0.3,
        "total_steps": 20.0,
        "kd_weight": 0.7,
        "epoch_decay": 0.9,
        "epoch_steps": 2.0,
        **changes,
    }
    floats = {name: np.float32(x) for name, x in numbers.items()}
    return steps.Hyper(**floats, key=jax.random.key(7))


def step_from(step: int, backbone: Backbone, spec: steps.StepSpec):
    """What an update says that is made as number `step` from the start."""
    state = steps.init_state(steps.Trainable(make_prompt(backbone, 0)))
    return train_step(
        state._replace(step=jnp.int32(step)),
        backbone.params,
        make_batch(),
        np.zeros((8, CLASSES), np.float32),
        None,
        hyper_at(kd_weight=0.0),
        spec=spec,
    )[1]


def own_loss(backbone, batch, key, spec) -> float:
    return float(
        loss_and_metrics(
            steps.Trainable(make_prompt(backbone, 0)),
            backbone.params,
            batch,
            None,
            None,
            hyper_at(kd_weight=0.0),
            key,
            spec=spec,
        )[0]
    )


def test_each_step_draws_a_dropout_of_its_own(tiny):
    """Step s from `fold_in(key, s)`, so that a resumed run draws the same."""
    spec = steps.StepSpec(tiny.config, "classification")
    found = [float(step_from(s, tiny, spec)["loss"]) for s in (0, 1, 5)]
    assert len(set(found)) == 3
    wanted = [
        own_loss(
            tiny,
            make_batch(),
            jax.random.fold_in(hyper_at().key, step),
            spec,
        )
        for step in (0, 1, 5)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    quiet = dataclasses.replace(tiny.config, dropout=0.0, attention_dropout=0.0)
    spec = steps.StepSpec(quiet, "classification")
    assert len({float(step_from(s, tiny, spec)["loss"]) for s in (0, 1)}) == 1


def test_each_part_of_a_batch_draws_a_dropout_of_its_own(tiny):
    """Four rows twice: only their masks can tell the two parts apart."""
    half = make_batch(size=4)
    batch = Batch(*(np.concatenate([x, x]) for x in half))
    spec = steps.StepSpec(tiny.config, "classification", accumulate=2)
    key = jax.random.key(3)
    _, metrics = gradient_of(
        steps.Trainable(make_prompt(tiny, 0)),
        tiny.params,
        batch,
        None,
        None,
        hyper_at(kd_weight=0.0),
        key,
        spec=spec,
    )
    each = [
        own_loss(tiny, half, jax.random.fold_in(key, part), spec)
        for part in (0, 1)
    ]
    assert abs(each[0] - each[1]) > 1e-3
    assert float(metrics["loss"]) == pytest.approx(np.mean(each), rel=1e-5)


def test_a_teacher_draws_other_masks_than_its_student(tiny):
    """The same prompt twice, with dropout in both: they must not agree."""
    prompt = make_prompt(tiny, 0)
    spec = steps.StepSpec(tiny.config, "classification", teacher_dropout=True)
    metrics = loss_and_metrics(
        steps.Trainable(prompt),
        tiny.params,
        make_batch(),
        None,
        prompt,
        hyper_at(),
        jax.random.key(0),
        spec=spec,
    )[1]
    assert float(metrics["kd_loss"]) > 1e-4


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_three_updates_are_the_rule_by_hand(tiny, rng, optimizer):
    """With a teacher, from step 5 on, clipped, decayed, scheduled."""
    config = dataclasses.replace(
        tiny.config, dropout=0.0, attention_dropout=0.0
    )
    clip = 0.2
    spec = steps.StepSpec(
        config, "classification", clip=clip, optimizer=optimizer
    )
    batch, hyper = make_batch(), hyper_at()
    taught = rng.normal(size=(8, CLASSES)).astype(np.float32)
    start = steps.Trainable(make_prompt(tiny, 0))
    leaves, treedef = jax.tree.flatten(jax.device_get(start))

    @jax.jit
    @jax.grad
    def of_loss(trainable):
        logits, _ = bert.apply(
            tiny.params,
            config,
            batch.tokens,
            batch.segments,
            trainable.prompt,
        )
        own = jnp.take_along_axis(
            jax.nn.log_softmax(logits), batch.labels[:, None], -1
        )
        return -own.mean() + 0.7 * jnp.square(logits - taught).mean()

    norms = []

    def gradient(step, params):
        params = [np.asarray(p, np.float32) for p in params]
        found = jax.tree.leaves(of_loss(jax.tree.unflatten(treedef, params)))
        norms.append(np.sqrt(sum(np.square(g).sum() for g in found)))
        return [np.asarray(g, np.float64) for g in found]

    rates = [0.02 * (1 - s / 20) * 0.9 ** (s // 2) for s in (5, 6, 7)]
    rule = getattr(update_rules, optimizer)
    wanted = rule(leaves, gradient, rates=rates, weight_decay=0.3, clip=clip)
    assert min(norms) > clip
    assert max(norms) > 1.02 * min(norms)
    state = steps.init_state(start, clip=clip, optimizer=optimizer)
    state = state._replace(step=jnp.int32(5))
    for number, rate in enumerate(rates):
        state, metrics = train_step(
            state, tiny.params, batch, taught, None, hyper, spec=spec
        )
        assert float(metrics["learning_rate"]) == pytest.approx(rate, rel=1e-5)
        # Before it was clipped.
        norm = float(metrics["gradient_norm"])
        assert norm == pytest.approx(norms[number], rel=1e-3)
    for ours, array in zip(
        jax.tree.leaves(state.trainable), wanted, strict=True
    ):
        np.testing.assert_allclose(ours, array, atol=2e-4)
