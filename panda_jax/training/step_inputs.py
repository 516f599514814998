"""What a fleet's compiled step is given, and where it lies."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from panda_jax import models
from panda_jax.config.runs import Run
from panda_jax.data.examples import AnyExamples, Examples, TextExamples
from panda_jax.data.loading import batch_indices
from panda_jax.errors import UserError
from panda_jax.models import cpu
from panda_jax.parallel import sharding
from panda_jax.parallel.sharding import Partitioner
from panda_jax.prompts import Prompt
from panda_jax.step import fleet, optimizers, steps
from panda_jax.step.fleet import Feed, Lanes
from panda_jax.step.parts import PartSteps
from panda_jax.step.steps import Hyper, Mixture, StepSpec, Trainable, TrainState
from panda_jax.store.backbones import Backbone
from panda_jax.tasks import specs
from panda_jax.training import evaluation, lane_memory
from panda_jax.training.lane import Lane
from panda_jax.training.prompt_init import initial_prompt
from panda_jax.types import Params, PyTree

# Bytes of the teachers' logits that are kept; beyond them they run in the step.
MOST_CACHED = 2**30
# Bytes of training rows that are kept on the device.
MOST_RESIDENT = 2**30
# Steps a dispatch.
MOST_STEPS = 10


def step_spec(run: Run, backbone: Backbone) -> StepSpec:
    """What of a run the compiled step depends on."""
    changes: dict[str, Any] = {"remat": run.remat}
    if run.dropout is not None:
        changes["dropout"] = run.dropout
        if not backbone.text_to_text:
            changes["attention_dropout"] = run.dropout
    text = backbone.text_to_text
    return StepSpec(
        config=dataclasses.replace(backbone.config, **changes),
        kind="text" if text else specs.get(run.task).kind,
        kd_form="kl" if run.recipe == "kl" else "mse",
        temperature=run.temperature,
        clip=run.clip,
        optimizer=run.optimizer or "adamw",
        accumulate=run.accumulate,
        teacher_dropout=run.method == "panda" and run.recipe == "released",
    )


def check_alike(lanes: list[Lane], backbone: Backbone) -> None:
    """Refuses lanes that cannot share a step.

    Raises:
      UserError: names the setting and the two runs.
    """
    first = lanes[0].run
    for lane in lanes[1:]:
        for name in _SHARED:
            one, other = getattr(first, name), getattr(lane.run, name)
            if one != other:
                raise UserError(
                    f"Runs of one fleet share {name}: {lanes[0].run_id} has "
                    f"{one!r}, {lane.run_id} has {other!r}. Train them in two "
                    "fleets."
                )
        if step_spec(first, backbone) != step_spec(lane.run, backbone):
            raise UserError(
                f"Runs of one fleet share the step: {lanes[0].run_id} and "
                f"{lane.run_id} differ in the distillation's recipe. Train "
                "them in two fleets."
            )
    if len(lanes) > 1 and first.method == "finetune":
        raise UserError("Model-tuning is a fleet of one: train it by itself.")


_SHARED = (
    "task",
    "backbone",
    "prompt_kind",
    "prompt_length",
    "batch_size",
    "epochs",
    "steps",
    "eval_every",
    "eval_period",
    "train_examples",
    "eval_examples",
    "select_on",
    "split",
    "max_length",
    "dtype",
    "target_length",
    "optimizer",
    "clip",
    "dropout",
    "remat",
    "accumulate",
    "temperature",
)


class Assembly:
    """The arrays of runs that are trained together on one task.

    Args:
      backbone: shared and frozen (but for method `finetune`).
      lanes: the runs.
      train_data: of their task.
      partitioner: how devices are shared out; None for all of them on
        accelerators, and one of a CPU's, whose devices share its cores.

    Raises:
      UserError: the lanes cannot share a step, or the devices do not divide.
    """

    def __init__(
        self,
        backbone: Backbone,
        lanes: list[Lane],
        train_data: AnyExamples,
        *,
        partitioner: Partitioner | None = None,
    ) -> None:
        check_alike(lanes, backbone)
        self.backbone = backbone
        self.lanes = lanes
        self.train_data = train_data
        run = self.run = lanes[0].run
        self.spec = specs.get(run.task)
        self.step_spec = step_spec(run, backbone)
        self.steps_per_epoch = max(1, len(train_data) // run.batch_size)
        self.total = run.total_steps(self.steps_per_epoch)
        self.epochs = -(-self.total // self.steps_per_epoch)
        many = jax.default_backend() != "cpu" or jax.process_count() > 1
        self.mesh = None
        if partitioner is not None or (many and jax.device_count() > 1):
            partitioner = partitioner or Partitioner()
            self.mesh = partitioner.mesh(len(lanes))
        self.partitioner = partitioner or Partitioner()
        if self.mesh is None and jax.default_backend() == "cpu":
            config = cpu.unrolled(self.step_spec.config)
            self.step_spec = dataclasses.replace(self.step_spec, config=config)
        groups = self.mesh.shape["data"] if self.mesh is not None else 1
        self.padded = Lanes(groups).padded(len(lanes))
        self.layout = Lanes(groups, self._chunk(self.padded // groups))
        # One CPU device: packed parts side by side. Model-tuning's gradient is
        # as large as the weights, so that parts of it would cost more.
        self.packed = (
            self.mesh is None
            and jax.default_backend() == "cpu"
            and run.method != "finetune"
            and cpu.enabled()
        )
        self.part_steps: PartSteps | None = None
        self.compiled = False
        self.state_layout: tuple[Any, ...] | None = None

    def _chunk(self, here: int) -> int:
        """Lanes at a time on a device that has so many."""
        memory = self.partitioner.memory()
        if self.partitioner.chunk is not None:
            return self.partitioner.chunk
        if memory is None:
            return 1  # on a CPU lanes one after another are fastest
        data = self.train_data
        text = isinstance(data, TextExamples)
        rows = data.rows(np.zeros(self.run.batch_size, np.int64)).size
        return lane_memory.choose(
            self.step_spec.config,
            rows=rows // self.run.accumulate,
            positions=data.tokens.shape[-1] + (self.run.prompt_length or 0),
            targets=data.targets.shape[1] if text else 0,
            mesh={} if self.mesh is None else dict(self.mesh.shape),
            dims=self.partitioner.parameter_partitioning_dims,
            here=here,
            memory=memory,
        )

    # What the compiled step is given

    def place(self, tree: PyTree, *axes: str | None) -> PyTree:
        """On the device, or split over the mesh."""
        if self.mesh is None:
            return jax.device_put(tree)
        return sharding.place(tree, self.mesh, *axes)

    def _boxed(self) -> PyTree:
        """Shapes of the weights, with their logical axes."""
        config = self.backbone.config
        init = functools.partial(models.module(config).init, config=config)
        return jax.eval_shape(init, jax.random.key(0))

    def frozen(self) -> Params | None:
        """The backbone's weights where the step finds them."""
        if self.run.method == "finetune":
            return None
        if self.mesh is None:
            return self.backbone.params
        rules = self.partitioner.rules
        return sharding.put(
            self.backbone.params,
            sharding.shardings(self._boxed(), self.mesh, rules),
        )

    def start(self) -> TrainState:
        """The states of step 0, [N, ...]."""
        states = []
        for lane in self.lanes:
            pot = lane.run.method == "pot"
            source = lane.needs.source if pot else None
            start = lane.needs.start
            own = start and evaluation.prompt_for(
                start, self.spec, self.backbone
            )
            prompt = initial_prompt(lane.run, self.backbone, source, own)
            trained = None
            if lane.run.method == "finetune":
                trained = self._trained_backbone()
            states.append(
                steps.init_state(
                    Trainable(prompt, trained),
                    clip=self.run.clip,
                    optimizer=self.step_spec.optimizer,
                )
            )
        if self.mesh is not None:
            axes = [_axes(leaf) for leaf in jax.tree.leaves(states[0])]
            self.step_spec = dataclasses.replace(
                self.step_spec,
                layout=tuple(self._sharding(*each) for each in axes),
            )
            self.state_layout = tuple(
                self._sharding("data", *each) for each in axes
            )
        return self.laid_out(fleet.stack(states, length=self.padded))

    def _sharding(self, *axes: str | None) -> jax.sharding.NamedSharding:
        assert self.mesh is not None
        return jax.sharding.NamedSharding(
            self.mesh, jax.sharding.PartitionSpec(*axes)
        )

    def laid_out(self, states: TrainState) -> TrainState:
        """States where every step will leave them."""
        if self.mesh is None:
            return jax.device_put(states)
        leaves, treedef = jax.tree.flatten(states)
        leaves = sharding.put(leaves, list(self.state_layout or ()))
        return jax.tree.unflatten(treedef, leaves)

    def _trained_backbone(self) -> Params:
        """An fp32 copy of the weights, none held twice on a mesh."""
        copies = jax.tree.map(
            lambda x: jax.numpy.array(x, np.float32, copy=True),
            self.backbone.params,
        )
        if self.mesh is None:
            return copies
        rules = sharding.RULES_2D
        return sharding.put(
            copies, sharding.shardings(self._boxed(), self.mesh, rules)
        )

    def hypers(self) -> Hyper:
        """The lanes' scalars, [N]."""
        hypers = []
        for lane in self.lanes:
            run = lane.run
            schedule = optimizers.schedule_numbers(
                run.schedule or "linear",
                total=self.total,
                epoch_steps=self.steps_per_epoch,
            )
            hypers.append(
                Hyper(
                    learning_rate=np.float32(run.peak_learning_rate),
                    weight_decay=np.float32(run.weight_decay or 0.0),
                    kd_weight=np.float32(lane.needs.kd_weight),
                    # fold_in 0 is the initialisation's (`starts`).
                    key=jax.random.fold_in(jax.random.key(run.seed), 1),
                    **{k: np.float32(v) for k, v in schedule.items()},
                )
            )
        return self.place(fleet.stack(hypers, length=self.padded), "data")

    def teachers(self) -> tuple[np.ndarray | None, Any]:
        """Cached logits [N, E, ...] of every training row, or online prompts.

        A deterministic teacher's logits over the training set are computed
        once: a PANDA step then costs what a prompt-tuning step costs. Online
        are the teacher of `released`, which has dropout, and those whose
        logits would fill the memory (roles: a hundred a token; text: the
        vocabulary). Lanes without a teacher have zeros, and weight 0.
        """
        data, taught = self.train_data, [x.needs.teachers for x in self.lanes]
        text = isinstance(data, TextExamples)
        if text and not any(taught):
            return None, None
        shape = (*data.tokens.shape[1:],) if self.step_spec.per_token else ()
        shape = (*shape, self.spec.outputs)
        numbers = len(self.lanes) * len(data.tokens) * np.prod(shape)
        online = text or 4 * numbers > MOST_CACHED
        online |= self.step_spec.teacher_dropout
        if online and any(taught):
            return None, self._online(taught)
        if online and numbers * 4 > MOST_CACHED:
            return None, None
        assert not isinstance(data, TextExamples)
        rows = data.rows(np.arange(len(data)))
        cached = np.zeros((self.padded, *rows.shape, *shape), np.float32)
        # A teacher is asked once, for the rows that any of its lanes sees.
        known: dict[int, np.ndarray] = {}
        for lane, teachers in enumerate(taught):
            for teacher, weight in teachers:
                found = known.get(id(teacher))
                if found is None:
                    found = self._logits(teacher.prompt, data, shape)
                    known[id(teacher)] = found
                cached[lane] += np.float32(weight) * found[rows]
        return cached, None

    def _logits(
        self, prompt: Prompt, data: Examples, shape: tuple[int, ...]
    ) -> np.ndarray:
        """[R, ...] of the rows that the run sees, 0 for the others."""
        found = np.zeros((len(data.tokens), *shape), np.float32)
        seen = self._seen()
        found[seen] = evaluation.outputs(
            self.backbone.params,
            self.backbone.config,
            prompt,
            data.of_rows(seen),
        )
        return found

    def _seen(self) -> np.ndarray:
        """The rows of tokens that any lane sees in the whole run, ascending."""
        data, seen = self.train_data, np.zeros(len(self.train_data), bool)
        left = self.total
        for epoch in range(self.epochs):
            order = self.order(epoch)[:left]
            seen[order] = True
            left -= len(order)
            if seen.all():
                break
        rows = data.rows(np.flatnonzero(seen))
        return np.unique(rows[rows >= 0])

    def _online(self, taught: list[Any]) -> Any:
        """The teachers' prompts, [N, ...], or mixtures of K, [N, K, ...]."""
        given = next(teachers[0][0] for teachers in taught if teachers)
        shapes = {
            np.shape(teacher.prompt.vectors)
            for teachers in taught
            for teacher, _ in teachers
        }
        if len(shapes) > 1:
            raise UserError(
                "Teachers that run in the step have prompts of one shape, got "
                f"{sorted(shapes)}: give sources of one kind and length."
            )
        none = jax.tree.map(np.zeros_like, given.prompt)
        most = max(map(len, taught))
        lanes = []
        for teachers in taught:
            found = [
                (jax.tree.map(np.asarray, teacher.prompt), weight)
                for teacher, weight in teachers
            ]
            found += [(none, 0.0)] * (most - len(found))
            if most == 1:
                lanes.append(found[0][0])
                continue
            prompts = fleet.stack([prompt for prompt, _ in found], length=most)
            weights = np.array([weight for _, weight in found], np.float32)
            lanes.append(Mixture(prompts, weights))
        return self.place(fleet.stack(lanes, length=self.padded), "data")

    def order(self, epoch: int) -> np.ndarray:
        """[S, N, B]: which examples each lane takes at each step."""
        found = [
            batch_indices(
                len(self.train_data),
                self.run.batch_size,
                seed=lane.run.seed,
                epoch=epoch,
            )
            for lane in self.lanes
        ]
        found += found[:1] * (self.padded - len(found))
        return np.stack(found, axis=1)

    def next_stop(self, step: int) -> int:
        """The step at which the loop looks up: an epoch's or a period's end."""
        periods = self.steps_per_epoch, self.run.eval_period or self.total
        ends = [step - step % period + period for period in periods]
        return min(*ends, self.total)

    def feeds(
        self, epoch: int, begun: int = 0, stop: int | None = None
    ) -> Iterator[Feed]:
        """The epoch's data: at once where it fits, else by dispatch.

        Args:
          epoch: from 0.
          begun: data of steps before this one may be left out.
          stop: the step before which to end, or None for the epoch's last.
        """
        first, order = epoch * self.steps_per_epoch, self.order(epoch)
        stop = first + len(order) if stop is None else stop
        if self.packed:
            last = np.int32(min(first + len(order), stop))
            yield Feed(None, self.cached, order, np.int32(first), last)
            return
        if self._resident is not None:
            data, taught = self._resident
            yield self._feed(data, taught, order, first, stop)
            return
        for begin in range(0, len(order), MOST_STEPS):
            part = order[begin : begin + MOST_STEPS]
            if not begun - len(part) < first + begin < stop:
                continue
            rows = part.ravel()
            data = self.train_data.batch(rows)
            taught = None if self.cached is None else self.cached[:, rows]
            here = np.arange(rows.size, dtype=np.int32).reshape(part.shape)
            yield self._feed(
                self.place(data),
                None if taught is None else self.place(taught, "data"),
                here,
                first + begin,
                stop,
            )

    def _feed(
        self, data: Any, taught: Any, order: Any, first: int, stop: int
    ) -> Feed:
        # The order is whole up to `stop` and beyond, so that its shape stays.
        last = np.int32(min(first + len(order), stop))
        order = _lengthened(order, bucket(len(order)))
        rows = self.run.batch_size
        divided = self.mesh is not None and not rows % self.mesh.shape["fsdp"]
        axes = (None, "data", "fsdp" if divided else None)
        return Feed(
            data,
            taught,
            self.place(order, *axes),
            self.place(np.int32(first)),
            self.place(last),
        )

    def load(self) -> Any:
        """Puts the training rows on the device where they fit.

        Returns:
          The online teachers' prompts, or None.
        """
        self.cached, online = self.teachers()
        if self.packed:
            if not any(lane.needs.teachers for lane in self.lanes):
                self.cached = None
            return online
        count = len(self.train_data)
        data = self.train_data.batch(np.arange(count))
        held = sum(np.asarray(x).nbytes for x in data)
        held += 0 if self.cached is None else self.cached.nbytes // self.padded
        self._resident = None
        if held <= MOST_RESIDENT:
            # Sizes in steps, so that tasks of like size share a compilation.
            length = bucket(count)
            taught = self.cached
            if taught is not None:
                taught = _lengthened(taught.swapaxes(0, 1), length)
                taught = self.place(taught.swapaxes(0, 1), "data")
            data = jax.tree.map(lambda x: _lengthened(x, length), data)
            self._resident = (self.place(data), taught)
        return online

    def run_steps(
        self,
        states: TrainState,
        position: Any,
        frozen: Params | None,
        feed: Feed,
        teachers: Any,
        hypers: Hyper,
    ) -> tuple[TrainState, Any, dict[str, Any]]:
        """Up to `MOST_STEPS` steps of every lane; as `fleet.run_steps`."""
        if self.packed:
            return self._run_parts(states, position, feed, teachers, hypers)
        given = (states, position, frozen, feed, teachers, hypers)
        static: dict[str, Any] = {
            "spec": self.step_spec,
            "lanes": self.layout,
            "most": MOST_STEPS,
            "layout": self.state_layout,
        }
        if not self.compiled:
            # What compiling took is given back before the step takes its own;
            # the call below finds what was compiled.
            fleet.lower_steps(*given, **static).compile()
            cpu.trim()
            self.compiled = True
        return fleet.run_steps(*given, **static)

    def _run_parts(
        self,
        states: TrainState,
        position: Any,
        feed: Feed,
        teachers: Any,
        hypers: Hyper,
    ) -> tuple[TrainState, Any, dict[str, Any]]:
        if self.part_steps is None:
            prompt = jax.tree.map(lambda x: x[0], states.trainable.prompt)
            width = 1
            if isinstance(self.train_data, Examples):
                rows = self.train_data.rows(np.zeros(1, np.int64))
                width = rows.size
            self.part_steps = PartSteps(
                self.step_spec,
                self.backbone.params,
                self.train_data,
                rows=self.run.batch_size * width,
                prompt=prompt,
            )
        begin, first, order = int(position), int(feed.first), feed.order
        end = min(begin + MOST_STEPS, int(feed.last))
        taught: Any = feed.taught
        states, metrics = self.part_steps.run(
            states,
            begin,
            end,
            np.asarray(order)[begin - first : end - first],
            taught,
            teachers,
            hypers,
        )
        return states, end, metrics


def bucket(size: int) -> int:
    """The least of 1, 2, 4, 8, ... and their quarters that is not below."""
    power = 1 << max(0, (size - 1).bit_length() - 1)
    step = max(1, power // 4)
    return -(-size // step) * step


def _lengthened(array: Any, length: int) -> np.ndarray:
    """Zeros after the first axis' last entry; nobody reads them."""
    array = np.asarray(array)
    room = np.zeros((length - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, room])


def _axes(leaf: Any) -> tuple[str | None, ...]:
    """The mesh axes that a leaf of one lane's state is split over."""
    placed = leaf.sharding
    if isinstance(placed, jax.sharding.NamedSharding):
        return tuple(placed.spec)
    return ()
