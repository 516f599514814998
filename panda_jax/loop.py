"""The training loop of one run: restore, step, log, evaluate, keep, save."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax import evaluation, models, runs, sharding, steps
from panda_jax.backbone import Backbone
from panda_jax.data import batch_indices
from panda_jax.errors import UserError
from panda_jax.examples import AnyExamples, TextExamples
from panda_jax.files import write_json
from panda_jax.interop import hf
from panda_jax.progress import Progress
from panda_jax.prompts import Prompt
from panda_jax.runs import Run
from panda_jax.starts import initial_prompt
from panda_jax.steps import Hyper, StepSpec, Trainable, TrainState
from panda_jax.store import PromptInfo, StoredPrompt, load_prompt, save_prompt
from panda_jax.tasks import specs
from panda_jax.trees import content_hash, size
from panda_jax.types import Array, Batch, Params
from panda_jax.writers import MetricWriter

LOG_EVERY = 10
CHECKPOINT_SECONDS = 60.0
# Bytes of a teacher's logits that are kept; beyond them it runs in the step.
MOST_CACHED = 2**30


@dataclasses.dataclass(frozen=True)
class Needs:
    """The prompts and numbers that a run starts from.

    Attributes:
      source: whose vectors vanilla transfer starts from.
      teacher: of PANDA: the source's prompt tuned on the target.
      similarity: of source and target, where it was measured.
      kd_weight: factor on the distillation loss.
    """

    source: StoredPrompt | None = None
    teacher: StoredPrompt | None = None
    similarity: float | None = None
    kd_weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run leaves.

    Attributes:
      prompt: the best prompt on the development split, with its head.
      result: the content of `result.json`.
      folder: the run folder, or None where nothing was written.
    """

    prompt: StoredPrompt
    result: dict[str, Any]
    folder: pathlib.Path | None = None

    @property
    def best(self) -> float:
        """The best development score of the task's main metric."""
        return self.result["best"]["value"]


@dataclasses.dataclass
class Tracking:
    """What the loop remembers between epochs; saved with each checkpoint."""

    best: float | None = None
    best_step: int = 0
    best_scores: dict[str, float] = dataclasses.field(default_factory=dict)
    first_epoch: float | None = None
    final: float | None = None
    seconds: float = 0.0


def _training_config(run: Run, config: models.Config) -> models.Config:
    """The same sizes with the run's dropout and rematerialisation."""
    changes: dict[str, Any] = {"remat": run.remat}
    if run.dropout is not None:
        changes["dropout"] = run.dropout
        if not models.is_text_to_text(config):
            changes["attention_dropout"] = run.dropout
    return dataclasses.replace(config, **changes)


@dataclasses.dataclass
class Session:
    """One run under way."""

    run: Run
    run_id: str
    backbone: Backbone
    needs: Needs
    train_data: AnyExamples
    eval_data: AnyExamples
    folder: pathlib.Path | None = None
    quiet: bool = False
    num_partitions: int = 1

    def __post_init__(self) -> None:
        run, config = self.run, self.backbone.config
        self.spec = specs.get(run.task)
        self.step_spec = StepSpec(
            config=_training_config(run, config),
            kind="text" if self.backbone.text_to_text else self.spec.kind,
            kd_form="kl" if run.recipe == "ours" else "mse",
            temperature=run.temperature,
            schedule=run.schedule or "linear",
            clip=run.clip,
            optimizer=run.optimizer or "adamw",
            teacher_dropout=run.recipe == "released",
        )
        # All weights and their optimizer state are split over the devices.
        self.mesh = None
        if run.method == "model" and jax.device_count() > 1:
            self.mesh = sharding.mesh(self.num_partitions)
        rows = len(self.train_data)
        self.steps_per_epoch = max(1, rows // run.batch_size)
        self.epochs = run.epochs_for(self.steps_per_epoch)
        self.total = self.epochs * self.steps_per_epoch
        self.tracking = Tracking()
        self.mark = (0, 0.0)  # step and time since when rates count
        self.best_prompt: StoredPrompt | None = None

    @property
    def metric(self) -> str:
        """The task's main metric."""
        return self.spec.metrics[0]

    def start(self) -> TrainState:
        """The state of step 0."""
        prompt = initial_prompt(
            self.run,
            self.backbone,
            self.needs.source if self.run.method == "pot" else None,
        )
        trained = None
        if self.run.method == "model":
            trained = self._trained_backbone()
        state = steps.init_state(
            Trainable(prompt, trained),
            clip=self.run.clip,
            optimizer=self.step_spec.optimizer,
        )
        return state if self.mesh is None else self._placed(state)

    def _trained_backbone(self) -> Params:
        """An fp32 copy of the weights, split over the mesh if there is one."""
        config, params = self.backbone.config, self.backbone.params
        copies = jax.tree.map(
            lambda x: jnp.array(x, jnp.float32, copy=True), params
        )
        if self.mesh is None:
            return copies
        init = functools.partial(models.module(config).init, config=config)
        boxed = jax.eval_shape(init, jax.random.key(0))
        return jax.device_put(copies, sharding.shardings(boxed, self.mesh))

    def _placed(self, state: TrainState) -> TrainState:
        """The state on the mesh, where every step will leave it."""
        assert self.mesh is not None
        whole = jax.sharding.NamedSharding(
            self.mesh, jax.sharding.PartitionSpec()
        )
        leaves, treedef = jax.tree.flatten(state)
        layout = self.step_spec.layout or tuple(
            x.sharding if x.ndim and len(x.sharding.device_set) > 1 else whole
            for x in leaves
        )
        self.step_spec = dataclasses.replace(self.step_spec, layout=layout)
        leaves = jax.device_put(leaves, list(layout))
        return jax.tree.unflatten(treedef, leaves)

    def _batch(self, chosen: np.ndarray) -> Batch:
        batch = self.train_data.batch(chosen)
        if self.mesh is None:
            return batch
        place = sharding.batch_sharding(self.mesh, len(chosen))
        return jax.device_put(batch, place)

    def hyper(self) -> Hyper:
        """The step's scalars."""
        return Hyper(
            learning_rate=np.float32(self.run.peak_learning_rate),
            weight_decay=np.float32(self.run.weight_decay or 0.0),
            total_steps=np.float32(self.total),
            kd_weight=np.float32(self.needs.kd_weight),
            # fold_in 0 is the initialisation's (`starts`).
            key=jax.random.fold_in(jax.random.key(self.run.seed), 1),
        )

    def teacher(self) -> tuple[np.ndarray | None, Prompt | None]:
        """Cached logits of every training row, or the online teacher.

        A deterministic teacher's logits over the training set are computed
        once: a PANDA step then costs what a prompt-tuning step costs. Online
        are the teacher of `released`, which has dropout, and one whose logits
        would fill the memory (roles: a hundred a token; text: the vocabulary).
        """
        stored, data = self.needs.teacher, self.train_data
        if stored is None:
            return None, None
        large = 4 * len(data.tokens) * np.prod(self.logits_shape) > MOST_CACHED
        large |= isinstance(data, TextExamples)
        if large or self.step_spec.teacher_dropout:
            return None, jax.tree.map(jnp.asarray, stored.prompt)
        assert not isinstance(data, TextExamples)
        cached = evaluation.outputs(
            self.backbone.params,
            self.backbone.config,
            stored.prompt,
            data,
        )
        return cached, None

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """Of one row of an encoder's: [C], or [T, C] per token."""
        T = self.train_data.tokens.shape[1:] if self.step_spec.per_token else ()
        return (*T, self.spec.outputs)

    def no_teacher(self) -> np.ndarray | None:
        """Zeros in the shape of a batch's logits: where nobody teaches.

        On the host, as the cached teacher's rows are: another kind of array
        would be another signature of the compiled step. None for text: a batch
        would hold the vocabulary once a piece.
        """
        data = self.train_data
        if isinstance(data, TextExamples):
            return None
        rows = data.rows(np.zeros(self.run.batch_size, np.int64)).size
        return np.zeros((rows, *self.logits_shape), np.float32)

    def execute(self) -> TrainResult:
        """Runs to the end and writes the result."""
        state = self.start()
        if self.folder is None:
            self._train(state, None, None, 0)
            return self._finish(state)
        # Orbax takes seconds to import; a run that writes nothing needs none.
        from panda_jax.checkpoints import Checkpoints

        checkpoints = Checkpoints(self.folder / "checkpoints")
        try:
            restored = checkpoints.restore(state)
            begun = 0
            if restored is not None:
                state, progress = restored
                if self.mesh is not None:
                    state = self._placed(state)
                begun = int(state.step)
                self.tracking = Tracking(**progress)
            with MetricWriter(
                self.folder, resume_step=begun if restored else None
            ) as writer:
                state = self._train(state, writer, checkpoints, begun)
        finally:
            checkpoints.close()
        return self._finish(state)

    def _train(
        self,
        state: TrainState,
        writer: MetricWriter | None,
        checkpoints: Any,
        begun: int,
    ) -> TrainState:
        run, data = self.run, self.train_data
        cached, teacher = self.teacher()
        untaught = self.no_teacher() if teacher is None else None
        hyper = self.hyper()
        saved = time.monotonic()
        before = self.tracking.seconds
        label = f"{run.task} {run.method} seed {run.seed}"
        rows = np.zeros((0, 0), np.int32)
        with Progress(
            label, total=self.total, done=begun, quiet=self.quiet
        ) as progress:
            if begun:
                progress.say(f"resumed at step {begun}")
            started = self.mark = (begun, time.monotonic())
            for step in range(begun, self.total):
                epoch, at = divmod(step, self.steps_per_epoch)
                if step == begun or at == 0:
                    rows = batch_indices(
                        len(data),
                        run.batch_size,
                        seed=run.seed,
                        epoch=epoch,
                    )
                chosen = rows[at]
                state, metrics = steps.train_step(
                    state,
                    self.backbone.params,
                    self._batch(chosen),
                    untaught
                    if cached is None
                    else cached[data.rows(chosen).ravel()],
                    teacher,
                    hyper,
                    spec=self.step_spec,
                )
                if step == begun:
                    jax.block_until_ready(metrics)
                    self.mark = (step + 1, time.monotonic())
                    taken = self.mark[1] - started[1]
                    progress.say(
                        f"first step, compilation and all {taken:.1f}s"
                    )
                progress.step()
                last = at + 1 == self.steps_per_epoch
                if (step + 1) % LOG_EVERY == 0 or last:
                    self._log(writer, step + 1, metrics)
                if last and self._is_evaluated(epoch):
                    self._evaluate(state, epoch, writer, progress)
                now = time.monotonic()
                self.tracking.seconds = before + now - started[1]
                if checkpoints and (last or now - saved > CHECKPOINT_SECONDS):
                    if not last:
                        # Never a diverged state in place of a good one.
                        self._check_finite(step + 1, jax.device_get(metrics))
                    checkpoints.save(state, dataclasses.asdict(self.tracking))
                    saved = now
                if last:
                    # Rates are of steps, not of what an epoch ends with.
                    self.mark = (step + 1, time.monotonic())
        return state

    def _is_evaluated(self, epoch: int) -> bool:
        number = epoch + 1
        return number in (1, self.epochs) or not number % self.run.eval_every

    def _log(
        self, writer: MetricWriter | None, step: int, metrics: dict[str, Array]
    ) -> None:
        """Writes a step's metrics; stops a run that diverged."""
        values = {
            name: float(value)
            for name, value in jax.device_get(metrics).items()
        }
        if self.needs.teacher is None:
            values["kd_loss"] = 0.0
            del values["teacher_agreement"]
        now = time.monotonic()
        rows = (step - self.mark[0]) * self.run.batch_size
        if rows:
            values["examples_per_second"] = rows / max(now - self.mark[1], 1e-9)
        self.mark = (step, now)
        if writer is not None:
            writer.write(step, **values)
        self._check_finite(step, values)

    def _check_finite(self, step: int, values: Mapping[str, Any]) -> None:
        """Stops a run that diverged.

        Raises:
          UserError: a value is NaN or Inf; names step and metric.
        """
        # The losses before what follows from them.
        for name in ("task_loss", "kd_loss", *values):
            if np.isfinite(values[name]):
                continue
            kept = "no prompt was good enough to keep"
            if self.tracking.best is not None:
                kept = (
                    f"the best prompt so far ({self.metric} "
                    f"{self.tracking.best:.4f} at step "
                    f"{self.tracking.best_step}) is kept"
                )
            raise UserError(
                f"Run {self.run_id}: {name} is {values[name]} at step {step}; "
                f"{kept}. Lower --learning_rate "
                f"({self.run.peak_learning_rate:g})."
            )

    def _evaluate(
        self,
        state: TrainState,
        epoch: int,
        writer: MetricWriter | None,
        progress: Progress,
    ) -> None:
        """Scores the development split and keeps the best prompt."""
        trainable = state.trainable
        params = (
            self.backbone.params
            if trainable.backbone is None
            else trainable.backbone
        )
        found = evaluation.scores(
            self.backbone,
            trainable.prompt,
            self.eval_data,
            spec=self.spec,
            params=params,
        )
        value, step = found[self.metric], int(state.step)
        track = self.tracking
        track.final = value
        if epoch == 0:
            track.first_epoch = value
        if writer is not None:
            writer.write(
                step, **{f"eval_{name}": score for name, score in found.items()}
            )
        if track.best is None or value > track.best:
            track.best, track.best_step, track.best_scores = value, step, found
            self._keep(trainable, params)
        progress.say(
            f"epoch {epoch + 1}/{self.epochs} {self.metric} {value:.4f} "
            f"(best {track.best:.4f})"
        )

    def _keep(self, trainable: Trainable, params: Params) -> None:
        """Stores the prompt (and a tuned backbone) as the best so far."""
        run, backbone = self.run, self.backbone
        tuned = trainable.backbone is not None
        prompt = jax.tree.map(np.asarray, jax.device_get(trainable.prompt))
        fingerprint = backbone.fingerprint
        if tuned:
            fingerprint = content_hash(params)
            if self.folder is not None:
                model = self.folder / "model"
                hf.save(model, params, backbone.config)
                backbone.tokenizer.save(model)
        source = self.needs.source
        info = PromptInfo(
            task=run.task,
            backbone=backbone.id,
            fingerprint=fingerprint,
            kind=prompt.kind,
            method=run.method,
            recipe=run.recipe if run.method == "panda" else None,
            source=source.info.task if source else None,
            seed=run.seed,
            data_fingerprint=self.train_data.fingerprint,
            max_length=run.max_length,
            scores=self.tracking.best_scores,
            labels=list(self.spec.output_names) if prompt.head else [],
            versions=runs.versions(),
        )
        if self.folder is None:
            self.best_prompt = StoredPrompt(prompt, info)
        else:
            self.best_prompt = save_prompt(self.folder / "prompt", prompt, info)

    def _finish(self, state: TrainState) -> TrainResult:
        run, track = self.run, self.tracking
        prompt = self.best_prompt
        if prompt is None:  # a resumed run that did not improve any more
            assert self.folder is not None
            prompt = load_prompt(self.folder / "prompt")
        trained = size(state.trainable)
        frozen = size(self.backbone.params)
        source, teacher = self.needs.source, self.needs.teacher
        result = {
            "run_id": self.run_id,
            "task": run.task,
            "backbone": run.backbone,
            "method": run.method,
            "recipe": run.recipe if run.method == "panda" else None,
            "source": source.info.task if source else None,
            "teacher": teacher.info.task if teacher else None,
            "similarity": self.needs.similarity,
            "kd_weight": self.needs.kd_weight,
            "seed": run.seed,
            "metric": self.metric,
            "best": {
                "value": track.best,
                "step": track.best_step,
                "scores": track.best_scores,
            },
            "first_epoch": {"value": track.first_epoch},
            "final": {"value": track.final},
            "epochs": self.epochs,
            "steps": self.total,
            "seconds": round(track.seconds, 3),
            "parameters": {
                "trained": trained,
                "frozen": 0 if run.method == "model" else frozen,
            },
            "data_fingerprint": self.train_data.fingerprint,
            "backbone_fingerprint": self.backbone.fingerprint,
            "versions": runs.versions(),
        }
        if self.folder is not None:
            write_json(self.folder / "result.json", result)
        return TrainResult(prompt, result, self.folder)
