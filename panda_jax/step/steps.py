"""The jitted steps, written for one prompt: train, predict, probe.

Prompt-tuning, vanilla transfer and PANDA are the same step with other
arguments (start, teacher logits, KD weight), so they share one compilation.
"""

import dataclasses
import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from panda_jax.models import Config, bert, layers, t5
from panda_jax.models.bert import BertConfig
from panda_jax.models.t5 import T5Config
from panda_jax.prompts import Prompt
from panda_jax.step import losses, optimizers
from panda_jax.types import (
    Array,
    ArrayLike,
    Batch,
    Params,
    PyTree,
    ScalarLike,
)

# What a step tells, each an fp32 scalar.
METRICS = (
    "loss",
    "task_loss",
    "kd_loss",
    "kd_weight",
    "teacher_agreement",
    "learning_rate",
    "gradient_norm",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trainable:
    """What the optimizer sees: the prompt, and for model-tuning the backbone.

    Attributes:
      prompt: prompt vectors and head.
      backbone: None, except for method `"finetune"`: the backbone's parameters.
    """

    prompt: Prompt
    backbone: Params | None = None


class TrainState(NamedTuple):
    """All that changes from step to step.

    Attributes:
      step: steps done; a lane that has stopped goes on counting.
      trainable: what is trained.
      opt_state: of the optimizer.
      stopped: the step at which the lane stopped to learn, -1 while it does.
    """

    step: Array
    trainable: Trainable
    opt_state: optax.OptState
    stopped: Array


class Mixture(NamedTuple):
    """Several online teachers of one lane, whose logits are mixed.

    Attributes:
      prompts: [K, ...].
      weights: [K], 0 past a lane's last.
    """

    prompts: Prompt
    weights: ArrayLike


class Hyper(NamedTuple):
    """Scalars of one run; arrays, so that runs share a compiled step.

    Attributes:
      learning_rate: peak of the schedule.
      weight_decay: AdamW's.
      total_steps: length of a linear schedule; infinite for the others.
      kd_weight: factor on the distillation loss, 0 for none.
      key: PRNG key of the dropout; step s uses `fold_in(key, s)`.
      epoch_decay: factor on the rate after each epoch.
      epoch_steps: length of an epoch.
    """

    learning_rate: ScalarLike
    weight_decay: ScalarLike
    total_steps: ScalarLike
    kd_weight: ScalarLike
    key: Array
    epoch_decay: ScalarLike = np.float32(1)
    epoch_steps: ScalarLike = np.float32(1)


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What the compiled step depends on beside the shapes; hashable.

    Attributes:
      config: sizes of the backbone, with the dropout rates to train with.
      kind: of the task, as in its specification; `"text"` on backbones that
        write their answers.
      kd_form: `"mse"` or `"kl"`.
      temperature: of `"kl"`.
      clip: global norm above which gradients are scaled down.
      teacher_dropout: whether an online teacher runs with dropout.
      optimizer: of `optim.OPTIMIZERS`.
      accumulate: parts of a batch whose gradients are averaged; less memory.
      layout: on a mesh, where each leaf of a lane's state lies, and what is
        computed from it: else XLA may split an update and gather the state.
    """

    config: Config
    kind: str
    kd_form: str = "mse"
    temperature: float = 2.0
    clip: float = 1.0
    teacher_dropout: bool = False
    optimizer: str = "adamw"
    accumulate: int = 1
    layout: tuple[jax.sharding.Sharding, ...] | None = None

    @property
    def per_token(self) -> bool:
        """Whether the head reads every token."""
        return per_token(self.kind)


def per_token(kind: str) -> bool:
    """Whether the head of a kind of task reads every token."""
    return kind in ("tags", "span")


def init_state(
    trainable: Trainable, *, clip: float = 1.0, optimizer: str = "adamw"
) -> TrainState:
    """The state before step 0."""
    tree: PyTree = trainable
    opt_state = optimizers.transform(optimizer, clip=clip).init(tree)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=opt_state,
        stopped=jnp.full((), -1, jnp.int32),
    )


def loss_and_metrics(
    trainable: Trainable,
    frozen: Params,
    batch: Batch,
    teacher_logits: ArrayLike | None,
    teacher: Prompt | Mixture | None,
    hyper: Hyper,
    key: Array,
    *,
    spec: StepSpec,
    shares: losses.Shares | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The objective for one batch.

    Args:
      trainable: what is differentiated.
      frozen: the backbone's parameters, where `trainable` brings none.
      batch: B examples.
      teacher_logits: of the cached teacher, shaped as the student's; zeros
        without a teacher, so that all methods share a compiled step; None
        when `teacher` is given, and without a teacher where zeros for each
        piece of the vocabulary would cost (kind text).
      teacher: the online teacher, run on the same batch (with dropout, as in
        the released code, if `spec` says so); None when its logits are cached.
      hyper: scalars of the run.
      key: PRNG key of this step's dropout.
      spec: static.
      shares: where the batch is a part of one: its means are those of the whole
        after the mean over parts.

    Returns:
      The loss, and scalars loss, task_loss, kd_loss, kd_weight and
      teacher_agreement (share of answers where student and teacher rank the
      same first; of the training batch, with dropout).
    """
    params = frozen if trainable.backbone is None else trainable.backbone
    student_key, teacher_key = jax.random.split(key)
    labels = jnp.asarray(batch.labels)
    # The candidates of a question are rows to the encoder.
    length = batch.tokens.shape[-1]
    tokens, segments = (
        jnp.asarray(array).reshape(-1, length)
        for array in (batch.tokens, batch.segments)
    )

    def run(params: Params, prompt: Prompt, key: Array | None) -> losses.Scored:
        c = spec.config
        if isinstance(c, T5Config):
            logits, _ = t5.apply(params, c, tokens, labels, prompt, key=key)
        else:
            logits, _ = bert.apply(
                params,
                c,
                tokens,
                segments,
                prompt,
                per_token=spec.per_token,
                key=key,
            )
        return losses.scored(logits, labels, tokens, kind=spec.kind)

    student = run(params, trainable.prompt, student_key)
    taught_key = teacher_key if spec.teacher_dropout else None
    if isinstance(teacher, Mixture):
        stopped = jax.lax.stop_gradient(teacher)
        each = [
            run(
                frozen,
                jax.tree.map(operator.itemgetter(k), stopped.prompts),
                taught_key,
            )
            for k in range(len(stopped.weights))
        ]
        mixed = jnp.tensordot(
            jnp.asarray(stopped.weights),
            jnp.stack([one.logits for one in each]),
            axes=1,
        )
        taught = each[0]._replace(logits=mixed)
    elif teacher is not None:
        taught = run(frozen, jax.lax.stop_gradient(teacher), taught_key)
    elif teacher_logits is not None:
        cached = jnp.asarray(teacher_logits)
        taught = losses.scored(cached, labels, tokens, kind=spec.kind)
    else:
        taught = None
    return objective(
        student,
        None if taught is None else taught.logits,
        labels,
        hyper.kd_weight,
        spec=spec,
        shares=shares,
    )


def objective(
    student: losses.Scored,
    taught: Array | None,
    labels: Array,
    kd_weight: ScalarLike,
    *,
    spec: StepSpec,
    shares: losses.Shares | None,
) -> tuple[Array, dict[str, Array]]:
    """Task loss and distillation of scored logits; see `loss_and_metrics`.

    Args:
      student: the student's rows.
      taught: the teacher's logits, in the same rows, or None without one.
      labels: as in `types.Batch`.
      kd_weight: factor on the distillation loss.
      spec: static.
      shares: of a part of a batch, as in `loss_and_metrics`.
    """
    task = losses.task_loss(student, labels, kind=spec.kind)
    kd = agreement = jnp.zeros(())
    if taught is not None:
        kd = losses.kd_loss(
            student,
            taught,
            form=spec.kd_form,
            temperature=spec.temperature,
        )
        agreement = losses.agreement(student, taught)
    if shares is not None:
        task, agreement = task * shares.rows, agreement * shares.rows
        # A divergence is a mean over rows, a squared error over entries.
        kd *= shares.rows if spec.kd_form == "kl" else shares.entries
    weight = jnp.asarray(kd_weight)
    loss = losses.panda_loss(task, kd, weight)
    return loss, {
        "loss": loss,
        "task_loss": task,
        "kd_loss": kd,
        "kd_weight": weight,
        "teacher_agreement": agreement,
    }


def update(
    state: TrainState,
    frozen: Params,
    batch: Batch,
    teacher_logits: ArrayLike | None,
    teacher: Prompt | Mixture | None,
    hyper: Hyper,
    *,
    spec: StepSpec,
) -> tuple[TrainState, dict[str, Array]]:
    """One step of one lane; arguments as `loss_and_metrics`.

    A lane whose loss or gradient is not finite keeps what it had before, and
    learns no more.
    """
    layout = None
    if spec.layout is not None:
        layout = jax.tree.unflatten(jax.tree.structure(state), spec.layout)
        state = jax.lax.with_sharding_constraint(state, layout)
    key = jax.random.fold_in(hyper.key, state.step)
    gradient, metrics = _gradient(
        state.trainable,
        frozen,
        batch,
        teacher_logits,
        teacher,
        hyper,
        key,
        spec=spec,
    )
    return advanced(state, gradient, metrics, hyper, spec=spec, layout=layout)


def advanced(
    state: TrainState,
    gradient: Trainable,
    metrics: dict[str, Array],
    hyper: Hyper,
    *,
    spec: StepSpec,
    layout: TrainState | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """The optimizer's part of `update`.

    Args:
      state: before the step.
      gradient: of the batch.
      metrics: of the batch, as `objective` gives them.
      hyper: scalars of the run.
      spec: static.
      layout: where each leaf of the state lies, on a mesh.
    """
    if layout is not None:
        gradient = jax.lax.with_sharding_constraint(gradient, layout.trainable)
    transform = optimizers.transform(spec.optimizer, clip=spec.clip)
    trees: tuple[PyTree, PyTree] = (gradient, state.trainable)
    direction, opt_state = transform.update(trees[0], state.opt_state, trees[1])
    rate = optimizers.learning_rate(
        jnp.asarray(hyper.learning_rate),
        state.step,
        total=jnp.asarray(hyper.total_steps),
        epoch_decay=jnp.asarray(hyper.epoch_decay),
        epoch_steps=jnp.asarray(hyper.epoch_steps),
    )
    trainable = optimizers.apply(
        state.trainable,
        direction,
        rate=rate,
        weight_decay=jnp.asarray(hyper.weight_decay),
        optimizer=spec.optimizer,
    )
    norm = optax.global_norm(gradient)
    metrics = metrics | {"learning_rate": rate, "gradient_norm": norm}
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    learning = state.stopped < 0
    kept = jax.tree.map(
        lambda new, old: jnp.where(learning & finite, new, old),
        (trainable, opt_state),
        (state.trainable, state.opt_state),
    )
    stopped = jnp.where(learning & ~finite, state.step, state.stopped)
    new = TrainState(state.step + 1, kept[0], kept[1], stopped)
    if layout is not None:
        new = jax.lax.with_sharding_constraint(new, layout)
    return new, metrics


def _gradient(
    trainable: Trainable,
    frozen: Params,
    batch: Batch,
    teacher_logits: ArrayLike | None,
    teacher: Prompt | Mixture | None,
    hyper: Hyper,
    key: Array,
    *,
    spec: StepSpec,
) -> tuple[Trainable, dict[str, Array]]:
    """The gradient and the metrics of a batch, in `spec.accumulate` parts."""
    gradient_of = jax.grad(loss_and_metrics, has_aux=True)
    if spec.accumulate == 1:
        return gradient_of(
            trainable,
            frozen,
            batch,
            teacher_logits,
            teacher,
            hyper,
            key,
            spec=spec,
        )

    def part(arrays: PyTree, number: Array) -> PyTree:
        rows, logits, shares = arrays
        own = jax.random.fold_in(key, number)
        return gradient_of(
            trainable,
            frozen,
            rows,
            logits,
            teacher,
            hyper,
            own,
            spec=spec,
            shares=shares,
        )

    parts = spec.accumulate
    rows, logits = jax.tree.map(
        lambda x: jnp.reshape(x, (parts, x.shape[0] // parts, *x.shape[1:])),
        (batch, teacher_logits),
    )
    split = (
        rows,
        logits,
        losses.shares(rows.labels, rows.tokens, kind=spec.kind),
    )
    like = jax.eval_shape(part, jax.tree.map(lambda x: x[0], split), 0)
    total = jax.lax.scan(
        lambda total, xs: (jax.tree.map(jnp.add, total, part(*xs)), None),
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like),
        (split, jnp.arange(parts)),
    )[0]
    return jax.tree.map(lambda x: x / parts, total)


@functools.partial(jax.jit, static_argnames=("config", "per_token", "best"))
def predict_step(
    params: Params,
    tokens: ArrayLike,
    segments: ArrayLike,
    prompt: Prompt,
    *,
    config: BertConfig,
    per_token: bool = False,
    best: bool = False,
) -> Array:
    """Logits [B, C], or [B, T, C] per token, without dropout.

    With `best` the highest one's id in place of C logits, -1 where they are
    not finite.
    """
    logits, _ = bert.apply(
        params, config, tokens, segments, prompt, per_token=per_token
    )
    return best_of(logits) if best else logits


def best_of(logits: Array) -> Array:
    """The highest one's id of [..., C] logits, -1 where any is not finite."""
    finite = jnp.isfinite(logits).all(-1)
    return jnp.where(finite, logits.argmax(-1), -1)


def probe(
    params: Params,
    tokens: ArrayLike,
    segments: ArrayLike,
    vectors: ArrayLike,
    *,
    config: Config,
) -> dict[str, Array]:
    """Activations without dropout, in fp32, for the transferability metrics.

    Args:
      params: the backbone.
      tokens: [B, T] ids, 0 where padded.
      segments: [B, T]; T5 reads none.
      vectors: a prompt's.
      config: sizes of the backbone.

    Returns:
      pooled [B, D] (BERT alone); first [B, D], the last layer at the first
      text position; mean [B, D], the last layer averaged over the text's real
      tokens; hidden [B, T, D], the last layer; layers [L, B, D], every
      layer's mean; neurons [L, B, F] at the first text position, or under a
      shallow prompt, which stands before it, likewise.
    """
    prompt = Prompt(vectors, {})
    shallow = 0 if prompt.kind == "deep" else prompt.length
    if isinstance(config, T5Config):
        _, _, aux = t5.encode(params, config, tokens, prompt, probe=shallow)
    else:
        _, aux = bert.apply(
            params, config, tokens, segments, prompt, probe=shallow
        )
    tokens = jnp.asarray(tokens)
    found = {name: jnp.asarray(x, jnp.float32) for name, x in aux.items()}
    hidden = found["hidden"][:, shallow:]
    weights = layers.mean_weights(tokens, tokens.shape[1])
    return found | {
        "hidden": hidden,
        "first": hidden[:, 0],
        "mean": layers.weighted_mean(hidden, weights),
    }
