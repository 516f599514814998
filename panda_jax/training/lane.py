"""One run's own part of a fleet: its scores, its files, its result."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np

from panda_jax.config import runs
from panda_jax.config.runs import Run
from panda_jax.data.examples import AnyExamples
from panda_jax.errors import UserError
from panda_jax.interop import hf
from panda_jax.io.claims import Claim
from panda_jax.io.writers import MetricWriter
from panda_jax.models.trees import content_hash, size
from panda_jax.prompts import Prompt
from panda_jax.store import prompt_folders
from panda_jax.store.backbones import Backbone
from panda_jax.store.prompt_folders import PromptInfo, StoredPrompt, load_prompt
from panda_jax.tasks import own, specs
from panda_jax.training import identity, run_folder
from panda_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Needs:
    """The prompts and numbers that a run starts from.

    Attributes:
      source: whose vectors vanilla transfer starts from.
      start: the task's own prompt, whose vectors and head are gone on from.
      teacher: of PANDA: the source's prompt tuned on the target.
      similarity: of source and target, where it was measured.
      transform: what made a part of the KD weight of that.
      kd_weight: factor on the distillation loss.
      mixture: of late fusion: all teachers, each with its logits' weight;
        `teacher` is the first.
      choice: of several sources: how each scored, and what is kept.
    """

    source: StoredPrompt | None = None
    teacher: StoredPrompt | None = None
    similarity: float | None = None
    kd_weight: float = 0.0
    mixture: tuple[tuple[StoredPrompt, float], ...] = ()
    choice: dict[str, Any] | None = None
    transform: str | None = None
    start: StoredPrompt | None = None

    @property
    def teachers(self) -> tuple[tuple[StoredPrompt, float], ...]:
        """Each teacher with its weight."""
        one = () if self.teacher is None else ((self.teacher, 1.0),)
        return self.mixture or one

    @property
    def source_name(self) -> str | None:
        """The source's task, or those of several."""
        if self.mixture:
            return "+".join(str(t.info.source) for t, _ in self.mixture)
        return self.source.info.task if self.source else None


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
    """What a lane remembers between epochs; saved with each checkpoint.

    Attributes:
      best: the main metric of the best evaluation so far, on the rows that
        choose.
      best_step, best_scores: of that evaluation; the scores on the rows that
        are reported.
      selection: its scores on the rows that choose, where those are others.
      looks: evaluations so far that the best one was chosen among.
      first_epoch, final: the main metric, on the rows that are reported,
        after the first epoch (or all of a shorter run) and at the end.
      seconds: spent on it (with its fleet).
      waited: evaluations since the best one.
      ended: the step at which it ended before the others, or None.
      error: why it ended, where that was no success.
    """

    best: float | None = None
    best_step: int = 0
    best_scores: dict[str, float] = dataclasses.field(default_factory=dict)
    selection: dict[str, float] = dataclasses.field(default_factory=dict)
    looks: int = 0
    first_epoch: float | None = None
    final: float | None = None
    seconds: float = 0.0
    waited: int = 0
    ended: int | None = None
    error: str | None = None


@dataclasses.dataclass
class Lane:
    """A run among those that are trained together.

    Attributes:
      run: its settings, with the family's defaults filled in.
      run_id: its name.
      needs: what it starts from.
      folder: its run folder, or None to write nothing.
      writes: whether this process is the one that writes to it.
      run_hash: of what `run.json` describes.
      claim: on the folder, where this process holds it for this run alone.
      overwrite: whether what is in the way there may be replaced.
      cut_rows: how many rows of each part are longer than the run reads.
      former: its names while it was to end earlier, the last first.
      tracking: its scores so far.
      best_prompt: found by this process; a resumed run may have none yet.
    """

    run: Run
    run_id: str
    needs: Needs
    folder: pathlib.Path | None = None
    writes: bool = True
    run_hash: str = ""
    claim: Claim | None = None
    overwrite: bool = False
    cut_rows: dict[str, int] = dataclasses.field(default_factory=dict)
    former: tuple[str, ...] = ()
    tracking: Tracking = dataclasses.field(default_factory=Tracking)
    best_prompt: StoredPrompt | None = None
    _writer: MetricWriter | None = None

    @property
    def metric(self) -> str:
        """The task's main metric."""
        return specs.get(self.run.task).metrics[0]

    @property
    def going(self) -> bool:
        """Whether it still learns."""
        return self.tracking.ended is None

    def open(self, resume_step: int | None) -> None:
        """Begins to write metrics; resuming drops those after that step."""
        if self.folder is not None and self.writes:
            self._writer = MetricWriter(self.folder, resume_step=resume_step)

    def close(self) -> None:
        """Ends its files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def check_held(self) -> None:
        """Refuses to go on in a folder that is another process's by now.

        Raises:
          UserError: this one was silent for so long that it counted as gone.
        """
        if self.claim is not None and self.claim.lost:
            raise UserError(
                f"The run folder {str(self.folder)!r} was taken over by "
                "another process, for which this one was silent for too long: "
                "it ends here. See the other's output."
            )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of a step."""
        self.check_held()
        one_output = specs.get(self.run.task).kind == "regression"
        if self.needs.teacher is None:
            values = values | {"kd_loss": 0.0}
        if self.needs.teacher is None or one_output:
            # Two that have one alternative always agree.
            values = {
                k: x for k, x in values.items() if k != "teacher_agreement"
            }
        if self._writer is not None:
            self._writer.write(step, **values)

    def trouble(self, step: int, values: Mapping[str, float]) -> str | None:
        """What to say of a step that diverged; None where all is finite."""
        # The losses before what follows from them.
        for name in ("task_loss", "kd_loss", *values):
            if np.isfinite(values[name]):
                continue
            track, kept = self.tracking, "no prompt was good enough to keep"
            if track.best is not None:
                kept = (
                    f"the best prompt so far ({self.metric} {track.best:.4f} "
                    f"at step {track.best_step}) is kept"
                )
            return (
                f"Run {self.run_id}: {name} is {values[name]} at step {step}; "
                f"{kept}. Lower --learning_rate "
                f"({self.run.peak_learning_rate:g})."
            )
        return None

    def fail(self, step: int, error: str) -> None:
        """Ends the lane for a reason; its best prompt stays."""
        self.tracking.ended, self.tracking.error = step, error

    def is_better(self, found: dict[str, float]) -> bool:
        """Whether an evaluation, on the rows that choose, is the best yet."""
        best = self.tracking.best
        return best is None or found[self.metric] > best

    @property
    def is_last_look(self) -> bool:
        """Whether the next evaluation ends it, unless it is the best."""
        patience, waited = self.run.patience, self.tracking.waited
        return self.going and bool(patience) and waited + 1 >= (patience or 0)

    def scored(
        self,
        step: int,
        found: dict[str, float],
        *,
        reported: dict[str, float] | None,
        first: bool,
    ) -> None:
        """Takes an evaluation in.

        Args:
          step: done.
          found: the metrics on the rows that choose.
          reported: those on the rows that are reported, which may be `found`
            itself; None where nobody needs them.
          first: whether they are the first epoch's.
        """
        track, better = self.tracking, self.is_better(found)
        track.looks += 1
        if reported is not None:
            track.final = reported[self.metric]
            if first:
                track.first_epoch = track.final
        apart = reported is not found
        if self._writer is not None:
            values = {f"eval_{name}": x for name, x in (reported or {}).items()}
            if apart:
                values |= {f"selection_{name}": x for name, x in found.items()}
            self._writer.write(step, **values)
        if better:
            assert reported is not None
            track.best, track.best_step = found[self.metric], step
            track.best_scores = reported
            track.selection = found if apart else {}
            track.waited = 0
            return
        track.waited += 1
        if self.run.patience and track.waited >= self.run.patience:
            track.ended = step

    def keep(
        self,
        prompt: Prompt,
        tuned: Params | None,
        *,
        backbone: Backbone,
        data_fingerprint: str,
    ) -> None:
        """Stores a prompt (and a tuned backbone) as the best so far.

        Args:
          prompt: NumPy arrays.
          tuned: the backbone's weights of method `finetune`, or None.
          backbone: that it was trained on.
          data_fingerprint: of the training rows.
        """
        run = self.run
        fingerprint = backbone.fingerprint
        if tuned is not None:
            fingerprint = content_hash(tuned)
        names = specs.get(run.task).output_names
        info = PromptInfo(
            task=run.task,
            backbone=backbone.id,
            fingerprint=fingerprint,
            backbone_folder=backbone.folder,
            tokenizer_fingerprint=backbone.tokenizer.identity,
            kind=prompt.kind,
            method=run.method,
            recipe=run.recipe if run.method == "panda" else None,
            source=self.needs.source_name,
            seed=run.seed,
            data_fingerprint=data_fingerprint,
            max_length=run.max_length,
            scores=self.tracking.best_scores,
            labels=list(names) if prompt.head else [],
            versions=runs.versions(),
            own_task=own.to_json(specs.get(run.task)),
        )
        if self.folder is None or not self.writes:
            self.best_prompt = StoredPrompt(prompt, info)
            return

        def model(new: pathlib.Path) -> None:
            hf.save(new, cast(Params, tuned), backbone.config)
            backbone.tokenizer.save(new)

        self.check_held()
        self.best_prompt = run_folder.keep(
            self.folder,
            prompt,
            info,
            model=None if tuned is None else model,
            overwrite=self.overwrite,
        )

    def finish(
        self,
        *,
        backbone: Backbone,
        data_fingerprint: str,
        floor: float,
        epochs: int,
        steps: int,
        trained: int,
        chosen_on: AnyExamples,
    ) -> TrainResult:
        """Writes the result, or the error of a lane that failed.

        Args:
          backbone: that it was trained on.
          data_fingerprint: of the training rows.
          floor: the score of the best answer that reads nothing.
          epochs: that the run was to have.
          steps: likewise.
          trained: how many numbers were trained.
          chosen_on: the rows that the best evaluation was chosen by.
        """
        run, track = self.run, self.tracking
        prompt = self.best_prompt
        if prompt is None:  # a resumed run that did not improve any more
            assert self.folder is not None
            prompt = load_prompt(self.folder / "prompt")
            kept = dataclasses.asdict(prompt.info)
            claimed = {
                "task": run.task,
                "method": run.method,
                "seed": run.seed,
                "best": {"scores": track.best_scores},
            }
            identity.check_prompt(claimed, kept, where=str(self.folder))
        teacher = self.needs.teacher
        weighed = run.weighs_by_similarity or None
        result = {
            "run_id": self.run_id,
            "run_hash": self.run_hash,
            "prompt_hash": prompt_folders.content_hash(prompt.prompt),
            "task": run.task,
            "backbone": run.backbone,
            "method": run.method,
            "recipe": run.recipe if run.method == "panda" else None,
            "source": self.needs.source_name,
            "teacher": teacher.info.task if teacher else None,
            "similarity": self.needs.similarity,
            "transfer_metric": weighed and run.transfer_metric,
            "kd_transform": weighed and self.needs.transform,
            "kd_weight": self.needs.kd_weight,
            "choice": self.needs.choice,
            "seed": run.seed,
            "metric": self.metric,
            "best": {
                "value": track.best_scores[self.metric],
                "step": track.best_step,
                "scores": track.best_scores,
            },
            "split": run.split,
            "selected_on": run.select_on,
            "looks": track.looks,
            "selection": {
                "value": track.best,
                "scores": track.selection,
                "examples": chosen_on.questions,
            }
            if track.selection
            else None,
            "cut_rows": self.cut_rows,
            "first_epoch": {"value": track.first_epoch},
            "final": {"value": track.final},
            "floor": floor,
            "epochs": epochs,
            "steps": steps if track.ended is None else track.ended,
            "seconds": round(track.seconds, 3),
            "parameters": {
                "trained": trained,
                "frozen": 0
                if run.method == "finetune"
                else size(backbone.params),
            },
            "data_fingerprint": data_fingerprint,
            "backbone_fingerprint": backbone.fingerprint,
            "dtype": backbone.config.dtype,
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "versions": runs.versions(),
        }
        if self.folder is not None and self.writes:
            self.check_held()
            run_folder.write_json(self.folder, "result.json", result)
        return TrainResult(prompt, result, self.folder)
