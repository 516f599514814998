"""Real training steps of one run, whatever the kind of task."""

import jax
import numpy as np

from panda_jax.prompts import Prompt, fresh_head
from panda_jax.step import steps

train_step = jax.jit(
    steps.update, static_argnames=("spec",), donate_argnames=("state",)
)


def one_step(spec, examples, backbone):
    """A step lowers nothing yet, but its loss and gradient are real."""
    c = backbone.config
    key = jax.random.key(0)
    vectors = jax.random.normal(key, (c.layers, 2, 4, c.heads, c.head_dim))
    prompt = Prompt(vectors, fresh_head(key, c.width, spec.outputs))
    state = steps.init_state(steps.Trainable(prompt))
    chosen = np.arange(2)
    batch = examples.batch(chosen)
    rows = examples.rows(chosen).size
    per_token = steps.per_token(spec.kind)
    T = examples.tokens.shape[1:] if per_token else ()
    _, metrics = train_step(
        state,
        backbone.params,
        batch,
        np.zeros((rows, *T, spec.outputs), np.float32),
        None,
        steps.Hyper(0.1, 0.0, 10.0, 0.0, key),
        spec=steps.StepSpec(c, spec.kind),
    )
    assert np.isfinite(float(metrics["task_loss"]))
    assert float(metrics["gradient_norm"]) > 0
    assert 0 <= float(metrics["teacher_agreement"]) <= 1
