"""The training loop of a fleet: restore, step, log, evaluate, keep, save.

A solo run is a fleet of one lane.
"""

import contextlib
import dataclasses
import faulthandler
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from panda_jax.data import answers
from panda_jax.data.examples import AnyExamples
from panda_jax.errors import InterruptedRun, UserError
from panda_jax.io.progress import Progress
from panda_jax.io.signals import Signals, watch
from panda_jax.models.trees import size
from panda_jax.parallel import sharding
from panda_jax.parallel.sharding import Partitioner
from panda_jax.step import fleet
from panda_jax.step.steps import TrainState
from panda_jax.store.backbones import Backbone
from panda_jax.training import evaluation
from panda_jax.training.lane import Lane, Tracking, TrainResult
from panda_jax.training.step_inputs import MOST_STEPS, Assembly

LOG_EVERY = 10
CHECKPOINT_SECONDS = 60.0
# Without a dispatch in this time, every thread's stack is written to stderr.
STALL_SECONDS = float(os.environ.get("PANDA_STALL_SECONDS", 1800))


class Trainer:
    """Runs that are trained together on one task.

    Args:
      backbone: shared and frozen (but for method `finetune`).
      lanes: the runs.
      train_data: of their task.
      eval_data: rows whose score is reported.
      selection: rows by whose score the best prompt is chosen; None for
        `eval_data`.
      folder: of the checkpoints, or None to save nothing.
      quiet: show no progress.
      partitioner: how devices are shared out, as in `Assembly`.

    Raises:
      UserError: the lanes cannot share a step, or the devices do not divide.
    """

    def __init__(
        self,
        backbone: Backbone,
        lanes: list[Lane],
        train_data: AnyExamples,
        eval_data: AnyExamples,
        *,
        selection: AnyExamples | None = None,
        folder: pathlib.Path | None = None,
        quiet: bool = False,
        partitioner: Partitioner | None = None,
    ) -> None:
        self.parts = Assembly(
            backbone, lanes, train_data, partitioner=partitioner
        )
        self.backbone = backbone
        self.lanes = lanes
        self.eval_data = eval_data
        self.apart = selection is not None and selection is not eval_data
        self.selection = eval_data if selection is None else selection
        self.folder = folder
        self.quiet = quiet
        self.run = lanes[0].run
        self.mark = (0, 0.0)  # step and time since when rates count
        self.dispatched = False

    def execute(self) -> list[TrainResult | UserError]:
        """Runs to the end and writes each lane's result.

        Returns:
          A result a lane, or why it failed.

        Raises:
          UserError: a solo run that failed.
          InterruptedRun: asked to end, and saved.
        """
        states = self.parts.start()
        if self.folder is None:
            states = self._train(states, None, 0)
            return self._finish(states)
        # Orbax takes seconds to import; a run that writes nothing needs none.
        from panda_jax.training.checkpoints import Checkpoints

        # A prompt's are kilobytes; those of weights are three times as large.
        kept = 1 if self.run.method == "finetune" else 2
        checkpoints = Checkpoints(self.folder, kept=kept)
        try:
            states, begun = self._restored(states, checkpoints)
            states = self._train(states, checkpoints, begun)
        finally:
            checkpoints.close()
        return self._finish(states)

    def _restored(
        self, states: TrainState, checkpoints: Any
    ) -> tuple[TrainState, int]:
        """The newest checkpoint's states of these lanes, on this mesh.

        It may hold more: those that had their result when the rest was killed.
        """
        found = checkpoints.restore(self._unpadded(states))
        if found is None:
            return states, 0
        whole, progress = found
        known = list(map(str, progress["runs"]))
        names, step = [], int(whole.step[0])
        for lane in self.lanes:
            # Of a run that was shorter once, the checkpoint has its name.
            named = [n for n in (lane.run_id, *lane.former) if n in known]
            if not named:
                raise UserError(
                    f"The checkpoint in {str(self.folder)!r} is of the runs "
                    f"{', '.join(known)}, not of {lane.run_id}. Choose "
                    "another folder, or delete that one."
                )
            names.append(named[0])
            try:
                kept = dict(progress["tracking"][named[0]])
                # Release 0.1 did not count them.
                kept.setdefault("looks", self._looks(step))
                lane.tracking = Tracking(**kept)
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"The checkpoint in {str(self.folder)!r} does not say how "
                    f"far {lane.run_id} is. Delete its folder checkpoints to "
                    "start the run again."
                ) from None
        rows = [known.index(name) for name in names]
        rows += rows[:1] * (self.parts.padded - len(rows))
        whole = jax.tree.map(lambda x: x[np.array(rows)], whole)
        return self.parts.laid_out(whole), step

    def _looks(self, step: int) -> int:
        """How many evaluations a run has had after so many steps."""
        each = self.parts.steps_per_epoch
        return sum(
            self.run.is_evaluated(done, each) for done in range(1, step + 1)
        )

    def _unpadded(self, states: TrainState) -> TrainState:
        """The lanes alone; weights of method `finetune` stay on the devices."""
        if len(self.lanes) == self.parts.padded == 1:
            return states
        count = len(self.lanes)
        return jax.tree.map(lambda x: x[:count], sharding.on_host(states))

    @contextlib.contextmanager
    def _opened(self, begun: int) -> Iterator[None]:
        """Lanes' files, the watchdog, and the way things were after it."""
        try:
            for lane in self.lanes:
                lane.open(begun or None)
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            for lane in self.lanes:
                lane.close()

    def _devices(self) -> str:
        """Such as `1 cpu device (float32)`: number, kind, data type."""
        mesh = self.parts.mesh
        count = 1 if mesh is None else mesh.size
        word = "device" if count == 1 else "devices"
        kind = jax.devices()[0].device_kind
        return f"{count} {kind} {word} ({self.backbone.config.dtype})"

    def _train(
        self, states: TrainState, checkpoints: Any, begun: int
    ) -> TrainState:
        parts, run = self.parts, self.run
        self.teachers = parts.load()
        self.frozen, self.hypers = parts.frozen(), parts.hypers()
        self.saved = time.monotonic()
        label = f"{run.task} {run.method} seed {run.seed}"
        if len(self.lanes) > 1:
            label = f"{run.task} fleet of {len(self.lanes)}"
        with (
            Signals() as signals,
            self._opened(begun),
            Progress(
                label, total=parts.total, done=begun, quiet=self.quiet
            ) as progress,
        ):
            progress.say(f"training on {self._devices()}")
            if begun:
                progress.say(f"resumed at step {begun}")
            self.started = time.monotonic()
            self.mark = (begun, self.started)
            self.before = self.lanes[0].tracking.seconds
            step = begun
            while step < parts.total:
                if not any(lane.going for lane in self.lanes):
                    break
                stop = parts.next_stop(step)
                states = self._stretch(
                    states, step, stop, checkpoints, signals, progress
                )
                step = stop
                if run.is_evaluated(step, parts.steps_per_epoch):
                    states = self._evaluate(states, step, progress)
                self._save(checkpoints, states)
                if signals.asked and step < parts.total:
                    self._end(checkpoints, step)
                # Rates are of steps, not of what an epoch ends with.
                self.mark = (step, time.monotonic())
        return states

    def _stretch(
        self,
        states: TrainState,
        step: int,
        stop: int,
        checkpoints: Any,
        signals: Signals,
        progress: Progress,
    ) -> TrainState:
        """Steps of one epoch up to `stop`; logs one dispatch behind."""
        parts, pending = self.parts, None
        position = parts.place(np.int32(step))
        epoch = step // parts.steps_per_epoch
        for feed in parts.feeds(epoch, step, stop):
            last = int(jax.device_get(feed.last))
            while step < last:
                watch(STALL_SECONDS)
                begin = step
                step = min(begin + MOST_STEPS, last)
                states, position, metrics = parts.run_steps(
                    states,
                    position,
                    self.frozen,
                    feed,
                    self.teachers,
                    self.hypers,
                )
                if not self.dispatched:
                    self.dispatched = True
                    jax.block_until_ready(metrics)
                    self.mark = (step, time.monotonic())
                    taken = self.mark[1] - self.started
                    progress.say(
                        f"first {step - begin} steps, compilation and all "
                        f"{taken:.1f}s"
                    )
                if pending is not None:
                    self._log(*pending)
                pending = (begin, step, metrics)
                progress.step(step - begin)
                late = signals.agree(
                    time.monotonic() - self.saved > CHECKPOINT_SECONDS
                )
                # A stretch's end is saved after its evaluation.
                if step < stop and (late or signals.asked):
                    self._log(*pending)
                    pending = None
                    self._save(checkpoints, states)
                    if signals.asked:
                        self._end(checkpoints, step)
        if pending is not None:
            self._log(*pending)
        return states

    def _log(self, begin: int, end: int, metrics: dict[str, Any]) -> None:
        """Takes a dispatch's metrics in; ends lanes that diverged.

        Raises:
          UserError: every lane has failed.
        """
        parts = self.parts
        host = sharding.on_host(metrics)
        now = time.monotonic()
        seconds = now - self.mark[1]
        rows = (end - self.mark[0]) * self.run.batch_size
        self.mark = (end, now)
        taken = end - begin
        finite = np.all([np.isfinite(v[:taken]) for v in host.values()], 0)
        steps = begin + 1 + np.arange(taken)
        logged = (steps % LOG_EVERY == 0) | (steps == parts.total)
        logged |= steps % parts.steps_per_epoch == 0
        for at, number in np.argwhere(logged[:, None] | ~finite).tolist():
            # Padding of the last group is no lane.
            if number >= len(self.lanes) or not self.lanes[number].going:
                continue
            lane, step = self.lanes[number], int(steps[at])
            values = {k: float(v[at, number]) for k, v in host.items()}
            error = lane.trouble(step, values)
            if rows:
                values["examples_per_second"] = rows / max(seconds, 1e-9)
            lane.log(step, values)
            if error:
                lane.fail(step, error)
        errors = [lane.tracking.error for lane in self.lanes]
        if all(errors):
            raise UserError(str(errors[0]))

    def _evaluate(
        self,
        states: TrainState,
        step: int,
        progress: Progress,
    ) -> TrainState:
        """Scores the rows that choose and keeps each lane's best prompt.

        Rows that are reported and choose nothing are scored where it shows:
        at a new best, after the first epoch and at the end.
        """

        def scores(rows: AnyExamples) -> list[dict[str, float] | UserError]:
            return evaluation.fleet_scores(
                self.backbone,
                states.trainable,
                self.frozen,
                rows,
                lanes=self.parts.layout,
                count=len(self.lanes),
                spec=self.parts.spec,
            )

        found = scores(self.selection)
        first = step == min(self.parts.steps_per_epoch, self.parts.total)
        better = [
            lane.going
            and not isinstance(scored, UserError)
            and lane.is_better(scored)
            for lane, scored in zip(self.lanes, found, strict=True)
        ]
        reported = found if not self.apart else [None] * len(found)
        end = step == self.parts.total or any(
            x.is_last_look for x in self.lanes
        )
        if self.apart and (first or end or any(better)):
            reported = scores(self.eval_data)
        prompts = sharding.on_host(states.trainable.prompt)
        tuned = states.trainable.backbone
        ended = np.zeros(self.parts.padded, bool)
        for number, lane in enumerate(self.lanes):
            if not lane.going:
                continue
            scored, shown = found[number], reported[number]
            if isinstance(scored, UserError) or isinstance(shown, UserError):
                wrong = scored if isinstance(scored, UserError) else shown
                lane.fail(step, str(wrong))
                continue
            lane.scored(step, scored, reported=shown, first=first)
            if better[number]:
                lane.keep(
                    jax.tree.map(lambda x, n=number: x[n], prompts),
                    tuned
                    and jax.tree.map(lambda x: x[0], sharding.on_host(tuned)),
                    backbone=self.backbone,
                    data_fingerprint=self.parts.train_data.fingerprint,
                )
            ended[number] = not lane.going
        bests = [lane.tracking.best for lane in self.lanes]
        # Beside the best of the rows that choose, of the same rows.
        metric = self.lanes[0].metric
        last = [x[metric] for x in found if not isinstance(x, UserError)]
        when = f"epoch {-(-step // self.parts.steps_per_epoch)}"
        when += f"/{self.parts.epochs}"
        if self.run.eval_period:
            when = f"step {step}/{self.parts.total}"
        progress.say(f"{when} {metric} {_many(last)} (best {_many(bests)})")
        errors = [lane.tracking.error for lane in self.lanes]
        if all(errors):
            raise UserError(str(errors[0]))
        if ended.any():
            states = fleet.stop(states, self.parts.place(ended, "data"))
        return states

    def _save(self, checkpoints: Any, states: TrainState) -> None:
        """Begins a checkpoint; what it rests on has been logged."""
        now = time.monotonic()
        for lane in self.lanes:
            if lane.going:
                seconds = self.before + now - self.started
                lane.tracking.seconds = seconds
            lane.check_held()
        if checkpoints is None:
            return
        progress = {
            "runs": [lane.run_id for lane in self.lanes],
            "tracking": {
                lane.run_id: dataclasses.asdict(lane.tracking)
                for lane in self.lanes
            },
        }
        checkpoints.save(self._unpadded(states), progress)
        self.saved = now

    def _end(self, checkpoints: Any, step: int) -> None:
        """Ends as asked, when the checkpoint is on disk."""
        if checkpoints is None:
            raise InterruptedRun(
                f"Ended as asked at step {step}; nothing kept."
            )
        raise InterruptedRun(
            f"Ended as asked at step {step} of {self.parts.total}, saved in "
            f"{str(self.folder)!r}; the same command goes on from there."
        )

    def _finish(self, states: TrainState) -> list[TrainResult | UserError]:
        trained = size(jax.tree.map(lambda x: x[:1], states.trainable))
        found: list[TrainResult | UserError] = []
        for lane in self.lanes:
            if lane.tracking.error is not None:
                found.append(UserError(lane.tracking.error))
                continue
            found.append(
                lane.finish(
                    backbone=self.backbone,
                    data_fingerprint=self.parts.train_data.fingerprint,
                    floor=answers.floor(self.parts.spec, self.eval_data),
                    epochs=self.parts.epochs,
                    steps=self.parts.total,
                    trained=trained,
                    chosen_on=self.selection,
                )
            )
        return found


def _many(values: Sequence[float | None]) -> str:
    """One score, or the least to the most of several."""
    real = [value for value in values if value is not None]
    low, high = min(real, default=0.0), max(real, default=0.0)
    return f"{low:.4f}" if len(values) == 1 else f"{low:.4f} to {high:.4f}"
