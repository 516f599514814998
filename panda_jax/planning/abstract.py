"""A fleet's compiled step on devices that are not there, from shapes alone.

What `Assembly` gives `fleet.run_steps` as arrays is given as shapes, types and
places: no weight is made and no data is read.
"""

import dataclasses
import functools
import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from panda_jax import models
from panda_jax.config.runs import Run
from panda_jax.data.examples import AnyExamples
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.errors import UserError
from panda_jax.models import Config
from panda_jax.parallel import sharding
from panda_jax.parallel.sharding import Partitioner
from panda_jax.prompts import Prompt, prompt_shape
from panda_jax.step import fleet, steps
from panda_jax.step.fleet import Feed
from panda_jax.step.steps import Hyper, Trainable
from panda_jax.store.backbones import Backbone
from panda_jax.tasks import specs
from panda_jax.training import step_inputs
from panda_jax.training.lane import Lane, Needs
from panda_jax.training.step_inputs import Assembly
from panda_jax.types import Batch, PyTree

# Stands where arrays are expected.
Shape: Any = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Elsewhere(Partitioner):
    """A partitioner of given devices in place of this machine's."""

    devices: tuple[Any, ...] = ()

    def mesh(self, lanes: int = 1, *, devices: Any = None) -> Mesh:
        """The mesh of `self.devices`."""
        return super().mesh(lanes, devices=devices or self.devices)


class _Rows:
    """So many training rows that nobody has read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


class Outline:
    """The arguments of `fleet.run_steps`, as shapes.

    Args:
      run: the settings; its family's defaults are filled in.
      config: the backbone's sizes.
      dtype: of the frozen weights and the computation.
      count: lanes.
      partitioner: of the devices to compile for, with a chunk.

    Raises:
      UserError: the devices do not divide, or the task's size is not known.
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        *,
        dtype: str,
        count: int,
        partitioner: Elsewhere,
    ) -> None:
        # Trained weights are fp32.
        self.dtype = "float32" if run.method == "finetune" else dtype
        config = dataclasses.replace(config, dtype=self.dtype)
        text = models.is_text_to_text(config)
        self.run = run.for_family(text_to_text=text)
        self.spec = specs.get(run.task)
        self.rows = self._count_rows()
        backbone = Backbone(
            id=run.backbone,
            config=config,
            params={},
            tokenizer=TextTokenizer.of_bytes(),
            fingerprint="",
        )
        lanes = [Lane(self.run, f"lane {i}", Needs()) for i in range(count)]
        self.parts = Assembly(
            backbone,
            lanes,
            cast(AnyExamples, _Rows(self.rows)),
            partitioner=partitioner,
        )
        assert self.parts.mesh is not None
        self.mesh, self.lanes = self.parts.mesh, self.parts.padded
        self.partitioner, self.config, self.text = partitioner, config, text
        self._weights()
        self._states()
        self._data()
        self.hypers = jax.tree.map(
            lambda x: self._at((self.lanes,), x.dtype, "data"),
            Hyper(
                *[Shape((), jnp.float32)] * 4,
                key=jax.eval_shape(lambda: jax.random.key(0)),
                epoch_decay=Shape((), jnp.float32),
                epoch_steps=Shape((), jnp.float32),
            ),
        )

    def lower(self) -> Any:
        """The step, ready to be compiled."""
        step_spec = dataclasses.replace(
            self.parts.step_spec,
            layout=tuple(self._place(*axes) for axes in self.axes),
        )
        return fleet.run_steps.lower(
            self.states,
            self._at((), jnp.int32),
            self.frozen,
            self.feed,
            self.teachers,
            self.hypers,
            spec=step_spec,
            lanes=self.parts.layout,
            most=step_inputs.MOST_STEPS,
            layout=tuple(self._place("data", *axes) for axes in self.axes),
        )

    def groups(self) -> dict[str, int]:
        """Bytes a device holds, by what they are of; without tiles' padding."""
        trainable = self.states.trainable
        data = (self.feed.data, self.feed.taught, self.feed.order)
        return {
            "backbone": held((self.frozen, trainable.backbone)),
            "prompts": held(trainable.prompt),
            "teachers": held(self.teachers),
            "optimizer": held(self.states.opt_state),
            "data": held(data),
        }

    def _count_rows(self) -> int:
        known = self.spec.rows.get("train")
        limit = self.run.train_examples
        if known is None and limit is None:
            raise UserError(
                f"How many rows {self.spec.name!r} has is not known: give "
                "--train_examples."
            )
        return min(count for count in (known, limit) if count)

    def _place(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _at(self, shape: tuple[int, ...], dtype: Any, *axes: Any) -> Any:
        return Shape(shape, dtype, sharding=self._place(*axes))

    def _weights(self) -> None:
        """The backbone, frozen or (method `finetune`) trained."""
        init = functools.partial(
            models.module(self.config).init, config=self.config
        )
        boxed = jax.eval_shape(init, jax.random.key(0))
        tuned = self.run.method == "finetune"
        rules = sharding.RULES_2D if tuned else self.partitioner.rules
        weights = jax.tree.map(
            lambda x, at: Shape(x.shape, jnp.dtype(self.dtype), sharding=at),
            nn.meta.unbox(boxed),
            sharding.shardings(boxed, self.mesh, rules),
        )
        self.tuned = weights if tuned else None
        self.frozen = None if tuned else weights

    def _states(self) -> None:
        c, run = self.config, self.run
        kind, length = run.prompt_kind or "deep", run.prompt_length or 0
        if run.method == "finetune":
            kind, length = "deep", 0
        shape = prompt_shape(
            kind,
            length,
            layers=models.prompt_layers(c),
            width=c.width,
            heads=c.heads,
            head_dim=c.head_dim,
        )
        head = {}
        if not self.text:
            size = self.spec.outputs
            head = {"kernel": (c.width, size), "bias": (size,)}
        prompt = Prompt(
            Shape(shape, jnp.float32),
            {name: Shape(size, jnp.float32) for name, size in head.items()},
        )
        state = jax.eval_shape(
            functools.partial(
                steps.init_state,
                clip=run.clip,
                optimizer=self.parts.step_spec.optimizer,
            ),
            Trainable(prompt, self.tuned),
        )
        self.axes = _axes(state, self.tuned)
        leaves, treedef = jax.tree.flatten(state)
        self.states = jax.tree.unflatten(
            treedef,
            [
                self._at((self.lanes, *x.shape), x.dtype, "data", *axes)
                for x, axes in zip(leaves, self.axes, strict=True)
            ],
        )
        self.prompt = prompt

    def _data(self) -> None:
        """The rows, the teachers and the order of the steps."""
        run, lanes = self.run, self.lanes
        rows = batch_shape(run, rows=self.rows, text=self.text)
        taught, online = self._teachers(rows)
        nbytes = sum(math.prod(x.shape) * 4 for x in rows)
        nbytes += 0 if taught is None else 4 * math.prod(taught)
        self.resident = nbytes <= step_inputs.MOST_RESIDENT
        count, length = self.rows, self.parts.steps_per_epoch
        if self.resident:
            count, length = (
                step_inputs.bucket(count),
                step_inputs.bucket(length),
            )
        else:
            length = step_inputs.MOST_STEPS
            count = length * lanes * run.batch_size
        fsdp = not run.batch_size % self.mesh.shape["fsdp"]
        self.feed = Feed(
            Batch(*(self._at((count, *x.shape[1:]), x.dtype) for x in rows)),
            None
            if taught is None
            else self._at((lanes, count, *taught[1:]), jnp.float32, "data"),
            self._at(
                (length, lanes, run.batch_size),
                jnp.int32,
                *(None, "data", "fsdp" if fsdp else None),
            ),
            self._at((), jnp.int32),
            self._at((), jnp.int32),
        )
        self.teachers = None
        if online:
            self.teachers = jax.tree.map(
                lambda x: self._at((lanes, *x.shape), x.dtype, "data"),
                self.prompt,
            )

    def _teachers(self, rows: Batch) -> tuple[tuple[int, ...] | None, bool]:
        """A lane's cached logits' shape, and whether teachers run online.

        As `Assembly.teachers` has it.
        """
        taught = self.run.needs_source and self.run.method == "panda"
        if self.text:
            return None, taught
        spec = self.parts.step_spec
        first = rows.labels.shape[: 2 if spec.kind == "choice" else 1]
        shape = (*first, self.spec.outputs)
        if spec.per_token:
            shape = (*first, self.run.max_length, self.spec.outputs)
        numbers = len(self.parts.lanes) * math.prod(shape)
        large = 4 * numbers > step_inputs.MOST_CACHED
        if taught and (large or spec.teacher_dropout):
            return None, True
        return None if large else shape, False


def batch_shape(run: Run, *, rows: int, text: bool) -> Batch:
    """So many training rows of a task, as long as the settings allow."""
    spec, length = specs.get(run.task), run.max_length
    kind = "text" if text else spec.kind
    wide: tuple[int, ...] = (rows,)
    if kind == "choice":
        wide = (rows, spec.train_choices or len(spec.choices))
    target = run.target_length or (256 if spec.kind == "tags" else 62)
    labels = {
        "text": (rows, target),
        "tags": (rows, length),
        "span": (rows, 2),
    }.get(kind, wide)
    dtype = np.float32 if kind == "regression" else np.int32
    tokens = Shape((*wide, length), np.int32)
    return Batch(tokens, tokens, Shape(labels, dtype))


def held(tree: PyTree) -> int:
    """Bytes that a device holds of placed shapes."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _axes(state: PyTree, tuned: PyTree) -> list[tuple[str | None, ...]]:
    """The axes that each leaf of a lane's state is split over: as its weight,
    where it is a tuned weight or one's moment."""
    if tuned is None:
        return [() for _ in jax.tree.leaves(state)]
    known = {
        jax.tree_util.keystr(path): tuple(leaf.sharding.spec)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tuned)
    }
    found = []
    for path, _ in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        _, _, own = name.partition(".backbone")
        found.append(known.get(own, ()))
    return found
