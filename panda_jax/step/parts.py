"""A training step on packed rows, part by part, parts side by side.

For one CPU device. The batch of a step is packed (`data.packing`) into parts;
a thread takes a part through the backbone, to its share of the loss and back.
The programs of the backbone depend on a part's shape alone, so that tasks,
methods and runs share them; losses and the optimizer's update are small ones
of their own.
"""

import collections
import concurrent.futures
import functools
import os
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.data import packing
from panda_jax.data.examples import AnyExamples, Examples, TextExamples
from panda_jax.models.bert import BertConfig
from panda_jax.models.stages import Places, T5Places
from panda_jax.prompts import Prompt
from panda_jax.step import fleet, layerwise, losses, steps
from panda_jax.step.steps import (
    Hyper,
    Mixture,
    StepSpec,
    Trainable,
    TrainState,
)
from panda_jax.types import Array, ArrayLike, Params

# Threads that take parts; each program uses what cores the others leave.
_THREADS = 4


class Given(NamedTuple):
    """What a loss is computed from, beside logits; by the kind of task.

    Attributes:
      labels: [S] of S slots, [R, W] tags, [S, 2] spans, [B, K] candidates, or
        [R, U] target ids.
      real: [S] which slots have a text (classification, regression), or None.
      within: [S, T] where a text's positions are among the part's (spans), or
        None.
      valid: [S, T] int32, not 0 where that is of a text, or None.
    """

    labels: np.ndarray
    real: np.ndarray | None = None
    within: np.ndarray | None = None
    valid: np.ndarray | None = None


class Work(NamedTuple):
    """A part of a lane's batch.

    Attributes:
      places: of its rows.
      given: for the loss; None where the batch has one loss (candidates).
      taught: the cached teacher's logits, as the student's are arranged.
      rows: which rows of the data its slots have, and their numbers in reads.
      shares: of the batch's mean loss.
    """

    places: Any
    given: Given | None
    taught: np.ndarray | None
    rows: tuple[tuple[int, int], ...]
    shares: losses.Shares


class Texts(Protocol):
    """Rows of an encoder's tokens, such as `Examples`."""

    @property
    def tokens(self) -> np.ndarray:
        """[R, T] int32 ids, 0-padded."""
        ...

    @property
    def segments(self) -> np.ndarray:
        """[R, T]."""
        ...


class Packing:
    """The rows of a split, ready to be packed.

    Args:
      examples: the split.
      batch: rows of a batch, candidates counted singly.
      prompt: P of a shallow prompt, which each text carries; 0 of a deep one.
      offset: where a text is read, as `layerwise.read_offset` says.
      per_token: whether every token is read.
    """

    def __init__(
        self,
        examples: TextExamples | Texts,
        batch: int,
        *,
        prompt: int,
        offset: int,
        per_token: bool,
    ) -> None:
        self.examples = examples
        self.prompt, self.offset = prompt, offset
        self.per_token = per_token
        self.lengths = packing.lengths_of(examples.tokens)
        self.packer = packing.packer(self.lengths + prompt, batch)
        if isinstance(examples, TextExamples):
            self.written = packing.lengths_of(examples.targets)

    def parts(self, rows: np.ndarray) -> list[packing.Part]:
        """Where rows of the split lie; -1 for one that is none."""
        lengths = np.where(rows >= 0, self.lengths[rows] + self.prompt, 0)
        return self.packer.parts(lengths.tolist())

    def blocks(self) -> list[tuple[packing.Part, Places]]:
        """All rows of the split in parts of one size a width."""
        rows = np.arange(len(self.lengths))
        lengths = (self.lengths + self.prompt).tolist()
        return [
            (part, self.places(part, rows))
            for part in self.packer.blocks(lengths)
        ]

    def places(self, part: packing.Part, rows: np.ndarray) -> Places:
        """A part's arrays.

        Args:
          part: of `parts` of these rows.
          rows: of the split; a part's texts are numbered by them.
        """
        own = {slot.text: int(rows[slot.text]) for slot in part.slots}
        data, lengths = self.examples, self.lengths
        tokens: Any = {t: data.tokens[r, : lengths[r]] for t, r in own.items()}
        segments: Any = None
        if not isinstance(data, TextExamples):
            segments = {
                t: data.segments[r, : lengths[r]] for t, r in own.items()
            }
        return Places(
            *packing.packed(
                part,
                tokens,
                segments,
                prompt=self.prompt,
                offset=self.offset,
            )
        )

    def targets(self, part: packing.Part, rows: np.ndarray) -> packing.Targets:
        """A part's targets."""
        data = self.examples
        assert isinstance(data, TextExamples)
        own = {slot.text: int(rows[slot.text]) for slot in part.slots}
        labels: Any = {
            t: data.targets[r, : self.written[r]] for t, r in own.items()
        }
        return packing.targets(part, labels)


def _slot(part: packing.Part, slot: packing.Slot) -> int:
    return slot.row * packing.most_texts(part.width) + slot.number


def _given(
    packed: Packing,
    part: packing.Part,
    rows: np.ndarray,
    kind: str,
    cached: np.ndarray | None,
) -> tuple[Given, np.ndarray | None, tuple[float, float]]:
    """For the loss of a part: labels, the teacher's logits, and how many rows
    and entries count."""
    data: Any = packed.examples
    slots = part.rows * packing.most_texts(part.width)
    outputs = 0 if cached is None else cached.shape[-1]

    def filled(shape: tuple[int, ...], fill: int, like: np.ndarray) -> Any:
        return np.full(shape, fill, like.dtype)

    if kind == "tags":
        labels = filled((part.rows, part.width), -1, data.labels)
        taught = np.zeros((*labels.shape, outputs), np.float32)
        for slot in part.slots:
            row = rows[slot.text]
            length = packed.lengths[row]
            begin = slot.start + packed.prompt
            at = np.s_[slot.row, begin : begin + length]
            labels[at] = data.labels[row, :length]
            if cached is not None:
                taught[at] = cached[row, :length]
        count = float((labels >= 0).sum())
        return Given(labels), taught, (count, count)

    if kind == "span":
        shape = (slots, part.width)
        labels = filled((slots, 2), 0, data.labels)
        index, valid = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        taught = np.zeros((*shape, outputs), np.float32)
        for slot in part.slots:
            row, at = rows[slot.text], _slot(part, slot)
            length = int(packed.lengths[row])
            begin = slot.row * part.width + slot.start + packed.prompt
            labels[at] = data.labels[row]
            index[at, :length] = begin + np.arange(length)
            valid[at, :length] = 1
            if cached is not None:
                taught[at, :length] = cached[row, :length]
        count = float(valid.sum())
        given = Given(labels, within=index, valid=valid)
        return given, taught, (float(len(part.slots)), count)

    labels = filled((slots,), 0, data.labels)
    real = np.zeros(slots, bool)
    taught = np.zeros((slots, outputs), np.float32)
    for slot in part.slots:
        row, at = rows[slot.text], _slot(part, slot)
        labels[at], real[at] = data.labels[row], True
        if cached is not None:
            taught[at] = cached[row]
    count = float(len(part.slots))
    return Given(labels, real=real), taught, (count, count)


def batch_work(
    packed: Packing,
    chosen: np.ndarray,
    *,
    kind: str,
    cached: np.ndarray | None,
) -> tuple[list[Work], Given | None, np.ndarray | None]:
    """A batch in parts.

    Args:
      packed: the split.
      chosen: [B] what a batch draws, as `Examples.rows` takes it.
      kind: of the task.
      cached: [E, ...] the teacher's logits, or None.

    Returns:
      The parts; and of kind choice, whose candidates are compared across
      parts, what the batch's loss is given and taught.
    """
    data: Any = packed.examples
    rows = data.rows(chosen)
    flat = rows.reshape(-1)
    whole = taught = None
    if kind == "choice":
        batch = data.batch(chosen)
        whole = Given(np.asarray(batch.labels))
        if cached is not None:
            taught = cached[chosen].reshape(-1, 1)
    found = []
    for part in packed.parts(flat):
        places = packed.places(part, flat)
        given, logits, counts = None, None, (0.0, 0.0)
        if kind == "text":
            said = packed.targets(part, flat)
            places = T5Places(places, said.tokens, said.text, said.position)
            given = Given(said.labels)
            count = float((said.labels != 0).sum())
            counts = (count, count)
        elif kind != "choice":
            given, logits, counts = _given(packed, part, flat, kind, cached)
        slots = tuple((slot.text, _slot(part, slot)) for slot in part.slots)
        found.append((places, given, logits, slots, counts))
    total = np.maximum(np.sum([counts for *_, counts in found], axis=0), 1)
    return (
        [
            Work(
                places,
                given,
                logits if cached is not None else None,
                slots,
                losses.Shares(*(counts / total).astype(np.float32)),
            )
            for places, given, logits, slots, counts in found
        ],
        whole,
        taught,
    )


def arranged(logits: Array, given: Given, kind: str) -> Array:
    """Logits as `losses.scored` takes them: a row a slot, or a position."""
    if kind in ("classification", "regression"):
        return logits.reshape(-1, logits.shape[-1])
    if kind == "span":
        flat = logits.reshape(-1, logits.shape[-1])
        return flat[jnp.asarray(given.within)]
    return logits


@functools.partial(jax.jit, static_argnames="spec")
def _loss(
    read: ArrayLike,
    head: Params,
    given: Given,
    taught: ArrayLike | None,
    kd_weight: ArrayLike,
    shares: losses.Shares | None,
    words: ArrayLike | None,
    *,
    spec: StepSpec,
) -> tuple[dict[str, Array], Array, Params]:
    """Metrics, and the gradients of what the head reads and of the head."""
    labels = jnp.asarray(given.labels)

    def scored(logits: Array) -> losses.Scored:
        valid: Any = given.valid
        real: Any = given.real
        return losses.scored(logits, labels, valid, kind=spec.kind, real=real)

    def loss(read: Array, head: Params) -> tuple[Array, dict[str, Array]]:
        logits = layerwise.head_logits(read, head, spec.config, words)
        student = scored(arranged(logits, given, spec.kind))
        teacher = None
        if taught is not None:
            teacher = scored(jnp.asarray(taught)).logits
        return steps.objective(
            student, teacher, labels, kd_weight, spec=spec, shares=shares
        )

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (d_read, d_head), metrics = gradient(jnp.asarray(read), head)
    return metrics, d_read, d_head


@functools.partial(jax.jit, static_argnames="spec")
def _taught(
    reads: list[ArrayLike],
    heads: list[Params],
    weights: ArrayLike | None,
    given: Given,
    words: ArrayLike | None,
    *,
    spec: StepSpec,
) -> Array:
    """The logits of online teachers, mixed where there are several."""
    found = [
        arranged(
            layerwise.head_logits(
                jnp.asarray(read),
                head,
                spec.config,
                None if words is None else jnp.asarray(words)[n],
            ),
            given,
            spec.kind,
        )
        for n, (read, head) in enumerate(zip(reads, heads, strict=True))
    ]
    if weights is None:
        return found[0]
    return jnp.tensordot(jnp.asarray(weights), jnp.stack(found), axes=1)


@functools.partial(jax.jit, static_argnames=("count", "models", "keys"))
def _words(
    key: Array, first: ArrayLike, *, count: int, models: int, keys: int
) -> Array:
    """Dropout's keys [count, models, keys, 2] of the parts of a step.

    A part's are those of its number, however many there are.
    """
    key = jax.random.fold_in(key, first)

    def part(number: Array) -> Array:
        own = jax.random.fold_in(key, number)
        return jax.random.key_data(jax.random.split(own, (models, keys)))

    return jax.vmap(part)(jnp.arange(count))


_advanced = jax.jit(steps.advanced, static_argnames=("spec",))


@functools.cache
def pool() -> concurrent.futures.ThreadPoolExecutor:
    """The threads that parts are computed in."""
    count = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )
    return concurrent.futures.ThreadPoolExecutor(
        min(count, _THREADS), thread_name_prefix="part"
    )


class Teachers(NamedTuple):
    """A lane's online teachers.

    Attributes:
      prompts: each one's vectors and head.
      weights: [K] of their logits; None for one alone.
    """

    prompts: list[Prompt]
    weights: np.ndarray | None


def lane_teachers(
    teachers: Prompt | Mixture | None, lane: int
) -> Teachers | None:
    """A lane's of what `Assembly` places for all."""
    if teachers is None:
        return None
    own: Any = jax.tree.map(lambda x: np.asarray(x[lane]), teachers)
    if isinstance(own, Prompt):
        return Teachers([own], None)
    count = len(own.weights)
    prompts = [
        jax.tree.map(lambda x, k=k: x[k], own.prompts) for k in range(count)
    ]
    return Teachers(prompts, own.weights)


class PartSteps:
    """Steps of lanes on one CPU device.

    Args:
      spec: of the step.
      params: the frozen backbone.
      examples: the training rows.
      rows: of a batch, candidates counted singly.
      prompt: of a lane: its kind and length count.
    """

    def __init__(
        self,
        spec: StepSpec,
        params: Params,
        examples: AnyExamples,
        *,
        rows: int,
        prompt: Prompt,
    ) -> None:
        self.spec = spec
        deep, length = prompt.kind == "deep", prompt.length
        self.backbone = layerwise.backbone(
            params,
            spec.config,
            deep=deep,
            length=length,
            per_token=spec.per_token,
        )
        self.packed = Packing(
            examples,
            rows,
            prompt=0 if deep else length,
            offset=layerwise.read_offset(spec.config, deep=deep, length=length),
            per_token=spec.per_token,
        )

    def run(
        self,
        states: TrainState,
        begin: int,
        end: int,
        order: np.ndarray,
        taught: np.ndarray | None,
        teachers: Prompt | Mixture | None,
        hypers: Hyper,
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Steps `begin` to `end` of every lane.

        Args:
          states: of N lanes.
          begin: steps done.
          end: the step before which to end.
          order: [end - begin, N, B] the examples of each step.
          taught: [N, E, ...] cached teachers' logits, or None.
          teachers: of N lanes, where they run online.
          hypers: of N lanes.

        Returns:
          The states, and metrics [end - begin, N].
        """
        count = order.shape[1]
        lanes = [_of(states, n) for n in range(count)]
        own = [_of(hypers, n) for n in range(count)]
        online = [lane_teachers(teachers, n) for n in range(count)]
        metrics: dict[str, np.ndarray] = {
            name: np.zeros((end - begin, count), np.float32)
            for name in steps.METRICS
        }
        ahead = collections.deque(
            (step, lane) for step in range(end - begin) for lane in range(count)
        )

        def prepared() -> Iterator[Any]:
            """The next batches, packed while the former are computed."""
            waiting: collections.deque[Any] = collections.deque()
            while ahead or waiting:
                while ahead and len(waiting) < count + 1:
                    step, lane = ahead.popleft()
                    waiting.append(
                        _packer().submit(
                            self._ahead,
                            order[step, lane],
                            None if taught is None else taught[lane],
                            own[lane].key,
                            begin + step,
                            online[lane],
                        )
                    )
                yield waiting.popleft().result()

        batches, told = prepared(), []
        for step in range(end - begin):
            begun = [
                self._begun(lanes[n], next(batches), online[n], own[n])
                for n in range(count)
            ]
            for n, finish in enumerate(begun):
                gradient, found = finish()
                lanes[n], found = _advanced(
                    lanes[n], gradient, found, own[n], spec=self.spec
                )
                told.append((step, n, found))
        # At the end, so that no step waits for what the former tells.
        for step, n, found in told:
            for name, value in found.items():
                metrics[name][step, n] = value
        return fleet.stack(list(lanes), length=count), metrics

    def _ahead(
        self,
        chosen: np.ndarray,
        cached: np.ndarray | None,
        key: Array,
        step: int,
        teachers: Teachers | None,
    ) -> tuple[Any, ...]:
        """`batch_work` of a step, and its dropout's keys."""
        work, whole, taught = batch_work(
            self.packed, chosen, kind=self.spec.kind, cached=cached
        )
        c: Any = self.spec.config
        words = None
        if c.dropout or getattr(c, "attention_dropout", 0):
            several = 0 if teachers is None else len(teachers.prompts)
            words = np.asarray(
                _words(
                    key,
                    np.int32(step),
                    # Batches of a part more share the program.
                    count=1 << (len(work) - 1).bit_length(),
                    models=1 + several,
                    keys=self.backbone.keys + 1,
                )
            )
        return work, whole, taught, words

    def _begun(
        self, state: TrainState, batch: Any, teachers: Any, hyper: Hyper
    ) -> Any:
        """Sends a lane's parts to the threads.

        Returns:
          What waits for them and gives the gradient and the metrics.
        """
        work, whole, taught, words = batch
        prompt = state.trainable.prompt
        vectors = np.asarray(prompt.vectors)
        head = prompt.head

        def teach(number: int, part: Work, kept: bool) -> Any:
            """The part's teachers' reads, or logits."""
            if teachers is None:
                return part.taught
            dropped = words if self.spec.teacher_dropout else None
            reads = []
            for n, each in enumerate(teachers.prompts):
                own = None if dropped is None else dropped[number, 1 + n, :-1]
                reads.append(
                    self.backbone.forward(
                        np.asarray(each.vectors), part.places, own
                    )
                )
            if kept:
                return reads
            last = None if dropped is None else dropped[number, 1:, -1]
            return self._mixed(reads, teachers, part.given, last)

        def part_of(number: int, part: Work) -> Any:
            own = None if words is None else words[number, 0]
            read, tape = self.backbone.taped(
                vectors, part.places, None if own is None else own[:-1]
            )
            if part.given is None:
                return read, tape, teach(number, part, True)
            metrics, d_read, d_head = _loss(
                read,
                head,
                part.given,
                teach(number, part, False),
                hyper.kd_weight,
                part.shares,
                None if own is None else own[-1],
                spec=self.spec,
            )
            found = self.backbone.backward(tape, d_read)
            return found, *jax.device_get((d_head, metrics))

        jobs = [pool().submit(part_of, n, p) for n, p in enumerate(work)]
        if whole is None:
            return functools.partial(self._summed, jobs, hyper)
        dropped = None if words is None else words[0]
        return functools.partial(
            self._compared,
            jobs,
            work,
            whole,
            taught,
            teachers,
            head,
            hyper,
            dropped,
        )

    def _mixed(
        self, reads: Any, teachers: Teachers, given: Any, words: Any
    ) -> Array:
        return _taught(
            reads,
            [each.head for each in teachers.prompts],
            teachers.weights,
            given,
            words,
            spec=self.spec,
        )

    def _summed(
        self, jobs: Any, hyper: Hyper
    ) -> tuple[Trainable, dict[str, Any]]:
        """The parts' gradients and metrics, in the parts' order."""
        vectors, heads, metrics = zip(
            *(job.result() for job in jobs), strict=True
        )
        head = jax.tree.map(lambda *x: _sum(x), *heads)
        found = jax.tree.map(lambda *x: _sum(x), *metrics)
        found["kd_weight"] = hyper.kd_weight
        return Trainable(Prompt(_sum(vectors), head)), found

    def _compared(
        self,
        jobs: Any,
        work: list[Work],
        whole: Given,
        taught: np.ndarray | None,
        teachers: Teachers | None,
        head: Params,
        hyper: Hyper,
        words: np.ndarray | None,
    ) -> tuple[Trainable, dict[str, Any]]:
        """Candidates of all parts in one loss, and back through the parts."""
        done = [job.result() for job in jobs]
        total = whole.labels.size

        def gathered(reads: list[Any]) -> np.ndarray:
            """[B * K, D] of the parts' [R, S, D]."""
            width = reads[0].shape[-1]
            found = np.zeros((total, width), np.float32)
            for part, read in zip(work, reads, strict=True):
                text, slot = np.array(part.rows).T
                found[text] = np.asarray(read).reshape(-1, width)[slot]
            return found

        if teachers is not None:
            reads = [
                gathered([each[2][n] for each in done])
                for n in range(len(teachers.prompts))
            ]
            dropped = self.spec.teacher_dropout and words is not None
            last = words[1:, -1] if dropped and words is not None else None
            taught = np.asarray(self._mixed(reads, teachers, whole, last))
        metrics, d_read, d_head = jax.device_get(
            _loss(
                gathered([read for read, _, _ in done]),
                head,
                whole,
                taught,
                hyper.kd_weight,
                None,
                None if words is None else words[0, -1],
                spec=self.spec,
            )
        )

        def back(part: Work, read: Any, tape: Any) -> np.ndarray:
            cotangent = np.zeros(read.shape, read.dtype)
            text, slot = np.array(part.rows).T
            cotangent.reshape(-1, read.shape[-1])[slot] = d_read[text]
            return self.backbone.backward(tape, cotangent)

        found = [
            pool().submit(back, part, read, tape)
            for part, (read, tape, _) in zip(work, done, strict=True)
        ]
        vectors = _sum([job.result() for job in found])
        return Trainable(Prompt(vectors, d_head)), metrics


class Reader:
    """Reads all rows of a split with a prompt, without dropout.

    Args:
      config: of the encoder.
      packed: the split.
    """

    def __init__(self, config: BertConfig, packed: Packing) -> None:
        self.config, self.packed = config, packed
        self.parts = packed.blocks()

    def logits(
        self, params: Params, prompt: Prompt, *, best: bool = False
    ) -> np.ndarray:
        """Of every row, in their order.

        Args:
          params: the backbone's.
          prompt: vectors and head.
          best: whether the highest one's id takes the place of C logits; -1
            where they are not finite.

        Returns:
          [R, C], or [R, T, C] per token, 0 where padded.
        """
        packed = self.packed
        backbone = layerwise.backbone(
            params,
            self.config,
            deep=prompt.kind == "deep",
            length=prompt.length,
            per_token=packed.per_token,
        )
        vectors = np.asarray(prompt.vectors)

        def read(places: Places) -> np.ndarray:
            found = backbone.forward(vectors, places, None)
            return np.asarray(
                _logits(found, prompt.head, config=self.config, best=best)
            )

        jobs = [pool().submit(read, places) for _, places in self.parts]
        tokens = packed.examples.tokens
        found: np.ndarray | None = None
        for (part, _), job in zip(self.parts, jobs, strict=True):
            here = job.result()
            if found is None:
                axes = 2 if packed.per_token else 1
                shape = (*tokens.shape[:axes], *here.shape[2:])
                found = np.zeros(shape, here.dtype)
            for slot in part.slots:
                if not packed.per_token:
                    found[slot.text] = here[slot.row, slot.number]
                    continue
                length = packed.lengths[slot.text]
                begin = slot.start + packed.prompt
                found[slot.text, :length] = here[
                    slot.row, begin : begin + length
                ]
        assert found is not None
        return found


@functools.partial(jax.jit, static_argnames=("config", "best"))
def _logits(
    read: ArrayLike, head: Params, *, config: BertConfig, best: bool
) -> Array:
    logits = layerwise.head_logits(jnp.asarray(read), head, config, None)
    return steps.best_of(logits) if best else logits


# What a split's rows are read by, while the split is there.
_readers: weakref.WeakKeyDictionary[Any, dict[Any, Reader]] = (
    weakref.WeakKeyDictionary()
)


def reader(
    examples: Examples, config: BertConfig, prompt: Prompt, *, per_token: bool
) -> Reader:
    """Of a split, packed once for all prompts of a kind and length."""
    deep, length = prompt.kind == "deep", prompt.length
    known = _readers.setdefault(examples, {})
    own = (config, 0 if deep else length, per_token)
    if own not in known:
        packed = Packing(
            examples,
            len(examples.tokens),
            prompt=0 if deep else length,
            offset=layerwise.read_offset(config, deep=deep, length=length),
            per_token=per_token,
        )
        known[own] = Reader(config, packed)
    return known[own]


@functools.cache
def _packer() -> concurrent.futures.ThreadPoolExecutor:
    """The thread that packs ahead."""
    return concurrent.futures.ThreadPoolExecutor(
        1, thread_name_prefix="packing"
    )


def _of(tree: Any, lane: int) -> Any:
    return jax.tree.map(lambda x: x[lane], tree)


def _sum(arrays: Any) -> np.ndarray:
    """In order, so that it is the same each time."""
    return functools.reduce(np.add, arrays)
