"""Steps on packed parts are the steps on padded batches."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from stepping import train_step

from panda_jax.data.examples import Examples, TextExamples
from panda_jax.models import bert, t5
from panda_jax.models.bert import BertConfig
from panda_jax.models.t5 import T5Config
from panda_jax.prompts import Prompt, fresh_head
from panda_jax.step import fleet, parts, steps
from panda_jax.step.steps import Mixture

ROWS, BATCH, P, STEPS = 24, 6, 4, 3
BERT = BertConfig(
    vocab_size=90,
    width=32,
    layers=2,
    heads=4,
    ffn=64,
    positions=64,
    dropout=0.0,
    attention_dropout=0.0,
)
T5 = T5Config(
    vocab_size=90,
    width=32,
    layers=2,
    decoder_layers=2,
    heads=4,
    head_dim=8,
    ffn=64,
    dropout=0.0,
)
OUTPUTS = {
    "classification": 3,
    "regression": 1,
    "choice": 1,
    "tags": 4,
    "span": 2,
    "text": 0,
}


def examples_of(kind):
    """Rows of 3 to 20 tokens, each with a label of the kind."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 21, ROWS)
    tokens = rng.integers(1, 90, (ROWS, 20)).astype(np.int32)
    real = np.arange(20) < lengths[:, None]
    tokens *= real
    segments = ((np.arange(20) > 4) & real).astype(np.int32)
    if kind == "text":
        targets = rng.integers(1, 90, (ROWS, 5)).astype(np.int32)
        targets *= np.arange(5) < rng.integers(1, 6, ROWS)[:, None]
        return TextExamples(tokens, targets, json.dumps([{}] * ROWS).encode())
    question = np.arange(ROWS, dtype=np.int32)
    labels = {
        "classification": rng.integers(0, 3, ROWS),
        "regression": rng.normal(size=ROWS).astype(np.float32),
        "tags": np.where(
            real & (rng.random(real.shape) < 0.7),
            rng.integers(0, 4, real.shape),
            -1,
        ),
        "span": np.stack([lengths // 3, lengths - 1], axis=1),
    }.get(kind)
    if kind == "choice":
        # Two or three candidates a question.
        sizes = [3, 2, 3, 2, 2, 3, 3, 2, 2, 2]
        question = np.repeat(np.arange(10, dtype=np.int32), sizes)
        first = np.searchsorted(question, np.arange(10))
        labels = np.zeros(ROWS, np.int32)
        labels[first] = 1
    if kind != "regression":
        labels = labels.astype(np.int32)
    references = json.dumps([{}] * (question[-1] + 1)).encode()
    return Examples(kind, tokens, segments, labels, question, references)


def weights(config):
    module = t5 if isinstance(config, T5Config) else bert
    params = nn.meta.unbox(module.init(jax.random.key(0), config))
    return jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape),
        params,
    )


def prompt_of(config, prompt_kind, outputs, seed=0):
    rng = np.random.default_rng(seed)
    shape = (P, config.width)
    if prompt_kind == "deep":
        depth = getattr(config, "decoder_layers", config.layers)
        shape = (depth, 2, P, config.heads, config.head_dim)
    vectors = rng.normal(size=shape).astype(np.float32)
    head = {}
    if outputs:
        head = fresh_head(jax.random.key(seed), config.width, outputs)
        head = jax.tree.map(lambda x: np.asarray(20 * x), head)
    return Prompt(vectors, head)


def hyper_of(seed=7, weight=0.5):
    return steps.Hyper(
        np.float32(1e-2),
        np.float32(0.01),
        np.float32(100),
        np.float32(weight),
        jax.random.key(seed),
    )


def taught_of(examples, kind, how, config, prompt_kind):
    """Cached logits [E, ...], or online teachers, of one lane."""
    outputs = OUTPUTS[kind]
    if how == "cached":
        rng = np.random.default_rng(9)
        length = examples.tokens.shape[1:] if kind in ("tags", "span") else ()
        rows = examples.rows(np.arange(len(examples))).shape
        shape = (*rows, *length, outputs)
        return rng.normal(size=shape).astype(np.float32), None
    if how == "online":
        return None, prompt_of(config, prompt_kind, outputs, seed=1)
    if how == "mixture":
        two = [prompt_of(config, prompt_kind, outputs, seed=n) for n in (1, 2)]
        return None, Mixture(
            fleet.stack(two, length=2), np.float32([0.25, 0.75])
        )
    return None, None


def both(kind, prompt_kind, how, form="mse"):
    """States and metrics of steps on padded batches, and of parts."""
    config = T5 if kind == "text" else BERT
    spec = steps.StepSpec(config, kind, kd_form=form, temperature=3.0)
    examples, params = examples_of(kind), weights(config)
    prompt = prompt_of(config, prompt_kind, OUTPUTS[kind])
    cached, online = taught_of(examples, kind, how, config, prompt_kind)
    hyper = hyper_of(weight=0.5 if how else 0.0)
    rng = np.random.default_rng(4)
    order = np.stack(
        [rng.permutation(len(examples))[:BATCH] for _ in range(STEPS)]
    )

    def begin():
        copy = jax.tree.map(np.array, prompt)
        return steps.init_state(steps.Trainable(copy))

    state, wanted = begin(), []
    for chosen in order:
        taught = None
        if cached is not None:
            taught = cached[chosen]
            if kind == "choice":
                taught = taught.reshape(-1, 1)
        state, metrics = train_step(
            state,
            params,
            examples.batch(chosen),
            taught,
            online,
            hyper,
            spec=spec,
        )
        wanted.append(jax.device_get(metrics))

    def lanes(tree):
        return jax.tree.map(lambda x: x[None], tree)

    rows = examples.rows(np.arange(1)).size
    packed = parts.PartSteps(
        spec, params, examples, rows=BATCH * rows, prompt=prompt
    )
    states, found = packed.run(
        lanes(begin()),
        0,
        STEPS,
        order[:, None],
        None if cached is None else cached[None],
        lanes(online),
        lanes(hyper),
    )
    return state, wanted, states, found, (packed, order)


CASES = [
    (kind, prompt_kind, how, form)
    for kind in OUTPUTS
    for prompt_kind in ("deep", "shallow")
    for how, form in (
        (None, "mse"),
        ("cached", "mse"),
        ("cached", "kl"),
        ("online", "kl"),
        ("mixture", "mse"),
    )
    # T5's teachers run in the step; half of the rest with shallow prompts.
    if not (kind == "text" and how == "cached")
    and not (prompt_kind == "shallow" and form == "kl")
]


@pytest.mark.parametrize(("kind", "prompt_kind", "how", "form"), CASES)
def test_steps_are_those_of_padded_batches(kind, prompt_kind, how, form):
    state, wanted, states, found, (packed, order) = both(
        kind, prompt_kind, how, form
    )
    rows = packed.packed.examples.rows(order[0]).reshape(-1)
    assert len(packed.packed.parts(rows)) > 1, "one part shows nothing"
    assert sorted(found) == sorted(steps.METRICS)
    for name in steps.METRICS:
        np.testing.assert_allclose(
            found[name][:, 0],
            [metrics[name] for metrics in wanted],
            rtol=2e-5,
            atol=1e-5,
            err_msg=name,
        )
    # Adam's first steps are of the rate's size, however small a gradient; that
    # of what all alternatives share is nothing but rounding.
    ours, theirs = (
        dataclasses.asdict(x.trainable.prompt) for x in (states, state)
    )
    if kind in ("choice", "span"):
        del ours["head"]["bias"], theirs["head"]["bias"]
    for name in ("vectors", "head"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                np.asarray(a)[0], b, rtol=1e-3, atol=2e-5
            ),
            ours[name],
            theirs[name],
        )
    assert int(states.step[0]) == STEPS
    assert int(states.stopped[0]) == -1


def test_a_lane_that_diverges_keeps_what_it_had():
    config, examples = BERT, examples_of("classification")
    spec = steps.StepSpec(config, "classification")
    prompt = prompt_of(config, "deep", 3)
    prompt.vectors[0, 0, 0, 0, 0] = np.nan
    packed = parts.PartSteps(
        spec, weights(config), examples, rows=BATCH, prompt=prompt
    )
    lanes = jax.tree.map(
        lambda x: np.asarray(x)[None],
        steps.init_state(steps.Trainable(prompt)),
    )
    hyper = jax.tree.map(lambda x: x[None], hyper_of())
    order = np.arange(2 * BATCH).reshape(2, 1, BATCH)
    states, found = packed.run(lanes, 0, 2, order, None, None, hyper)
    assert int(states.stopped[0]) == 0
    assert not np.isfinite(found["loss"]).any()
    np.testing.assert_array_equal(
        states.trainable.prompt.vectors[0], prompt.vectors
    )


@pytest.mark.parametrize("kind", ["classification", "choice", "text"])
def test_steps_in_two_dispatches_are_the_same_to_the_bit(kind):
    """With dropout: its draws are of a step's number, not of a call's."""
    config = T5 if kind == "text" else BERT
    config = dataclasses.replace(config, dropout=0.3)
    spec = steps.StepSpec(config, kind)
    examples, params = examples_of(kind), weights(config)
    prompt = prompt_of(config, "deep", OUTPUTS[kind])
    packed = parts.PartSteps(spec, params, examples, rows=BATCH, prompt=prompt)
    hypers = fleet.stack([hyper_of(1), hyper_of(2)], length=2)
    order = np.random.default_rng(0).integers(0, len(examples), (4, 2, BATCH))
    order[:, 1] = order[:, 0]

    def begin():
        state = steps.init_state(steps.Trainable(prompt))
        return fleet.stack([state, state], length=2)

    def run(states, first, last):
        return packed.run(
            states, first, last, order[first:last], None, None, hypers
        )

    whole, found = run(begin(), 0, 4)
    half, early = run(begin(), 0, 2)
    half, late = run(half, 2, 4)
    jax.tree.map(np.testing.assert_array_equal, whole, half)
    for name in steps.METRICS:
        both = np.concatenate([early[name], late[name]])
        np.testing.assert_array_equal(found[name], both)
    # Two lanes of the same rows and other keys draw otherwise.
    assert found["loss"][0, 0] != found["loss"][0, 1]


def test_no_two_draws_share_a_key():
    """Of steps, parts, student and teachers, and stages."""
    key = jax.random.key(3)
    words = [
        np.asarray(parts._words(key, step, count=4, models=2, keys=5))
        for step in range(3)
    ]
    every = np.concatenate([x.reshape(-1, 2) for x in words])
    assert len(np.unique(every, axis=0)) == 3 * 4 * 2 * 5
    # A part's are its own however many there are.
    more = parts._words(key, 1, count=8, models=2, keys=5)
    np.testing.assert_array_equal(more[:4], words[1])


def test_a_dropped_step_is_no_undropped_one():
    config = dataclasses.replace(BERT, dropout=0.3, attention_dropout=0.3)
    examples, params = examples_of("classification"), weights(BERT)
    prompt = prompt_of(BERT, "deep", 3)
    losses = []
    for each in (BERT, config):
        spec = steps.StepSpec(each, "classification")
        packed = parts.PartSteps(
            spec, params, examples, rows=BATCH, prompt=prompt
        )
        state = jax.tree.map(
            lambda x: np.asarray(x)[None],
            steps.init_state(steps.Trainable(prompt)),
        )
        hyper = jax.tree.map(lambda x: x[None], hyper_of())
        order = np.arange(BATCH)[None, None]
        _, found = packed.run(state, 0, 1, order, None, None, hyper)
        losses.append(float(found["loss"][0, 0]))
    assert losses[0] != losses[1]


@pytest.mark.parametrize("kind", ["classification", "tags", "span"])
@pytest.mark.parametrize("prompt_kind", ["deep", "shallow"])
def test_a_reader_s_logits_are_those_of_padded_batches(kind, prompt_kind):
    examples, params = examples_of(kind), weights(BERT)
    prompt = prompt_of(BERT, prompt_kind, OUTPUTS[kind])
    per_token = steps.per_token(kind)
    for best in (False, True):
        wanted = np.asarray(
            steps.predict_step(
                params,
                examples.tokens,
                examples.segments,
                prompt,
                config=BERT,
                per_token=per_token,
                best=best,
            )
        )
        if per_token:
            real = examples.tokens != 0
            wanted = np.where(real if best else real[..., None], wanted, 0)
        reader = parts.reader(examples, BERT, prompt, per_token=per_token)
        found = reader.logits(params, prompt, best=best)
        scale = max(np.abs(wanted).max(), 1)
        np.testing.assert_allclose(
            found / scale, wanted / scale, rtol=1e-5, atol=1e-5
        )
    # Packed once, for every prompt of the kind.
    assert reader is parts.reader(
        examples, BERT, prompt_of(BERT, prompt_kind, 2), per_token=per_token
    )
