"""What prompts make of the frozen backbone, streamed through lanes of a fleet.

A bank of M prompts costs M passes over the rows of their tasks, however many
pairs are scored later. What was read once is kept on disk by the prompt's hash.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax import models
from panda_jax.data import packing
from panda_jax.data.examples import AnyExamples, Examples, longest_row
from panda_jax.models import cpu
from panda_jax.parallel import sharding
from panda_jax.parallel.sharding import Partitioner
from panda_jax.prompts import kind_of, length_of
from panda_jax.step import fleet, layerwise, steps
from panda_jax.step.fleet import Lanes
from panda_jax.step.parts import Packing, pool
from panda_jax.store.backbones import Backbone
from panda_jax.transfer.vector_cache import VectorCache
from panda_jax.types import Array, ArrayLike, Params

# Rows of a batch at most.
_ROWS = 128
# Tokens of the narrowest batch.
_NARROWEST = 16
# Row sets that stay packed.
_PACKINGS = 64
# Dispatches that are under way before the oldest is waited for.
_AHEAD = 4
# Lanes at once where rows are too short to fill a device: as many as have so
# many positions in all, and so many at most.
_POSITIONS = 2048
_LANES = 16

Work = TypeVar("Work")


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of text to probe with.

    Attributes:
      tokens: [R, T] int32 ids, 0-padded.
      segments: likewise.
      name: sha256 of what they are.
    """

    tokens: np.ndarray
    segments: np.ndarray
    name: str


class Batch(NamedTuple):
    """Rows of like length; what is padding weighs nothing.

    Attributes:
      number: [B] which rows they are, R for padding.
      tokens: [B, T].
      segments: likewise.
      weights: [B] fp32, 1 / R on the real ones, so that sums are means.
    """

    number: np.ndarray
    tokens: np.ndarray
    segments: np.ndarray
    weights: np.ndarray


def rows_of(tokens: np.ndarray, segments: np.ndarray) -> Rows:
    """Rows of [R, T] arrays."""
    digest = hashlib.sha256(f"{len(tokens)}".encode())
    for array in (tokens, segments):
        # Padding past the longest row changes nothing that is read.
        real = array[:, : longest_row(tokens)]
        digest.update(np.ascontiguousarray(real, np.int32).tobytes())
    return Rows(tokens, segments, digest.hexdigest())


def batches_of(rows: Rows) -> list[Batch]:
    """Batches of like size, a multiple of four, longest rows first.

    A batch is as wide as a power of two (or the rows) allows.
    """
    count, longest = rows.tokens.shape
    parts = -(-count // _ROWS)
    size = -(-count // (4 * parts)) * 4 if count > 1 else 1
    lengths = packing.lengths_of(rows.tokens)
    order = np.argsort(-lengths, kind="stable")
    found = []
    for begin in range(0, count, size):
        chosen = order[begin : begin + size]
        number = np.full(size, count)
        number[: len(chosen)] = chosen
        here = int(lengths[chosen[0]])
        width = min(longest, max(_NARROWEST, 1 << (here - 1).bit_length()))
        room = ((0, size - len(chosen)), (0, 0))
        weights = np.zeros(size, np.float32)
        weights[: len(chosen)] = 1 / count
        found.append(
            Batch(
                number,
                np.pad(rows.tokens[chosen, :width], room),
                np.pad(rows.segments[chosen, :width], room),
                weights,
            )
        )
    return found


def rows_of_examples(examples: AnyExamples) -> Rows:
    """All rows of a split's examples."""
    tokens = examples.tokens
    encoder = isinstance(examples, Examples)
    return rows_of(tokens, examples.segments if encoder else 0 * tokens)


def rows_without_text(backbone: Backbone) -> Rows:
    """One row of special tokens only: `[CLS] [SEP]`, or T5's end."""
    tokens = np.array([backbone.tokenizer.empty_ids], np.int32)
    return rows_of(tokens, 0 * tokens)


@functools.partial(
    jax.jit, static_argnames=("config", "lanes", "read", "per_row")
)
def probe_lanes(
    vectors: ArrayLike,
    params: Params,
    tokens: ArrayLike,
    segments: ArrayLike,
    weights: ArrayLike,
    *,
    config: models.Config,
    lanes: Lanes,
    read: str,
    per_row: bool = False,
) -> Array:
    """One read-out of every lane: its weighted sum over the lane's rows.

    Args:
      vectors: [N, ...] prompts.
      params: the backbone.
      tokens: [N, R, T].
      segments: likewise.
      weights: [N, R].
      config: static.
      lanes: static.
      read: static, a key of `steps.probe`.
      per_row: static; each row's own in place of the sum.

    Returns:
      [N, D] (pooled, first, mean), [N, L, D] (layers) or [N, L, F] (neurons);
      with `per_row` [N, R, ...].
    """

    def one(
        vectors: Array, tokens: Array, segments: Array, weights: Array
    ) -> Array:
        found = steps.probe(params, tokens, segments, vectors, config=config)
        value = found[read]
        if read in ("layers", "neurons"):
            value = value.swapaxes(0, 1)
        return value if per_row else jnp.tensordot(weights, value, axes=1)

    return fleet.over_lanes(one, lanes, vectors, tokens, segments, weights)


@dataclasses.dataclass(frozen=True)
class Ask:
    """One prompt with the rows to read it on.

    Attributes:
      load: gives its vectors, each time anew.
      shape: of them.
      hash: of what they are.
      rows: the rows.
    """

    load: Callable[[], ArrayLike]
    shape: tuple[int, ...]
    hash: str
    rows: Rows


class Prober:
    """Reads prompts on a backbone, in chunks, past a cache.

    Args:
      backbone: the frozen model.
      partitioner: how devices are shared out; None for all of an
        accelerator's, and one of a CPU's, whose devices share its cores.
      cached: whether what was read is kept on disk and found there.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        partitioner: Partitioner | None = None,
        cached: bool = True,
    ) -> None:
        self.backbone = backbone
        # Processes with other caches would compute other things together.
        self.cache = VectorCache(on=cached and jax.process_count() == 1)
        on_cpu = jax.default_backend() == "cpu"
        self.mesh = None
        self.params = backbone.params
        if partitioner is not None or not (on_cpu or jax.device_count() == 1):
            partitioner = partitioner or Partitioner()
            self.mesh = partitioner.mesh(jax.device_count())
            self.params = self._placed_backbone(partitioner)
        self.packs = self.mesh is None and on_cpu and cpu.enabled()
        self._backbones: dict[tuple[str, int], layerwise.Backbone] = {}
        self._packings: dict[tuple[str, int], Any] = {}

    def _placed_backbone(self, partitioner: Partitioner) -> Params:
        config = self.backbone.config
        init = functools.partial(models.module(config).init, config=config)
        boxed = jax.eval_shape(init, jax.random.key(0))
        assert self.mesh is not None
        return sharding.put(
            self.backbone.params,
            sharding.shardings(boxed, self.mesh, partitioner.rules),
        )

    def read(self, asks: Sequence[Ask], read: str) -> list[np.ndarray]:
        """One read-out, averaged over its rows, of each.

        Args:
          asks: any number; prompts are loaded when their turn comes and let
            go after it.
          read: `pooled`, `first`, `mean`, `layers` or `neurons`.

        Returns:
          fp32 arrays in the order of `asks`, as `probe_lanes` gives them.
        """
        keys = [self.key(ask, read) for ask in asks]
        found = {key: self.cache.get(key) for key in dict.fromkeys(keys)}
        missing: dict[str, Ask] = {
            key: ask
            for key, ask in zip(keys, asks, strict=True)
            if found[key] is None
        }
        for key, value in self._stream(missing.items(), read):
            found[key] = value
            self.cache.put(key, value)
        return [np.asarray(found[key]) for key in keys]

    def key(self, ask: Ask, *about: Any) -> str:
        """The name under which something of an ask is kept."""
        config = str(self.backbone.config)
        fingerprint = self.backbone.fingerprint
        return self.cache.key(
            [ask.hash, ask.rows.name, fingerprint, config, *about]
        )

    def features(
        self, asks: Iterable[tuple[Work, Ask]], read: str
    ) -> Iterator[tuple[Work, np.ndarray]]:
        """Each ask's own rows, [rows, ...], one after another."""
        return self._stream(asks, read, per_row=True)

    def _stream(
        self,
        asks: Iterable[tuple[Work, Ask]],
        read: str,
        *,
        per_row: bool = False,
    ) -> Iterator[tuple[Work, np.ndarray]]:
        """Values in the order of their shapes; memory stays flat."""
        if self.packs:
            yield from self._packed(asks, read, per_row)
            return
        waiting: dict[Any, list[tuple[Work, Ask]]] = {}
        pending: collections.deque = collections.deque()

        def dispatch(work: list[tuple[Work, Ask]]) -> None:
            parts = self._probe([ask for _, ask in work], read, per_row)
            pending.append((work, parts))

        def oldest() -> Iterator[tuple[Work, np.ndarray]]:
            work, parts = pending.popleft()
            host = sharding.on_host([found for _, found in parts])
            if not per_row:
                values = np.sum([np.asarray(x) for x in host], 0)
                yield from zip((x for x, _ in work), values, strict=False)
                return
            for lane, (label, ask) in enumerate(work):
                own = [
                    (numbers[lane], np.asarray(x[lane]))
                    for (numbers, _), x in zip(parts, host, strict=True)
                ]
                yield label, _by_row(ask.rows, own)

        for item in asks:
            shape = (item[1].shape, item[1].rows.tokens.shape)
            group = waiting.setdefault(self._group(item[1], shape), [])
            group.append(item)
            if len(group) == self._together(item[1]):
                dispatch(waiting.pop(self._group(item[1], shape)))
            if len(pending) > _AHEAD:
                yield from oldest()
        for group in waiting.values():
            dispatch(group)
        while pending:
            yield from oldest()

    def _packed(
        self, asks: Iterable[tuple[Work, Ask]], read: str, per_row: bool
    ) -> Iterator[tuple[Work, np.ndarray]]:
        """`_stream` on one CPU device: rows packed, parts side by side."""
        pending: collections.deque = collections.deque()

        def oldest() -> tuple[Work, np.ndarray]:
            label, rows, packed, jobs = pending.popleft()
            found = _read_back(
                rows, packed, [job.result() for job in jobs], read
            )
            return label, found if per_row else found.mean(0)

        for label, ask in asks:
            vectors = np.asarray(ask.load(), np.float32)
            backbone, packed = self._backbone_of(ask), self._packing_of(ask)
            jobs = [
                pool().submit(backbone.probed, vectors, places, read)
                for _, places in packed[1]
            ]
            pending.append((label, ask.rows, packed, jobs))
            if len(pending) > _AHEAD:
                yield oldest()
        while pending:
            yield oldest()

    def _backbone_of(self, ask: Ask) -> layerwise.Backbone:
        kind, length = kind_of(ask.shape), length_of(ask.shape)
        if (kind, length) not in self._backbones:
            self._backbones[kind, length] = layerwise.backbone(
                self.params,
                self.backbone.config,
                deep=kind == "deep",
                length=length,
            )
        return self._backbones[kind, length]

    def _packing_of(self, ask: Ask) -> Any:
        """Positions before each text, and the parts with their places."""
        prompt = 0 if kind_of(ask.shape) == "deep" else length_of(ask.shape)
        key = (ask.rows.name, prompt)
        if key not in self._packings:
            if len(self._packings) == _PACKINGS:
                del self._packings[next(iter(self._packings))]
            packed = Packing(
                ask.rows,
                len(ask.rows.tokens),
                prompt=prompt,
                offset=prompt,
                per_token=False,
            )
            self._packings[key] = prompt, packed.blocks()
        return self._packings[key]

    def _together(self, ask: Ask) -> int:
        """How many of an ask's shape are computed in one dispatch."""
        if self.mesh is not None:
            return self.mesh.shape["data"]
        rows, length = ask.rows.tokens.shape
        rows = min(rows, _ROWS)
        fit = _POSITIONS // (rows * (length + length_of(ask.shape)))
        return min(max(fit, 1), _LANES)

    def _group(self, ask: Ask, shape: Any) -> Any:
        """What asks of one dispatch share: batches of the same shapes."""
        if self._together(ask) == 1:
            return shape
        widths = tuple(x.tokens.shape for x in batches_of(ask.rows))
        return shape, widths

    def _probe(
        self, asks: list[Ask], read: str, per_row: bool
    ) -> list[tuple[list[np.ndarray], Array]]:
        """A part for each batch of rows; the first ask again up to full."""
        together = self._together(asks[0])
        lanes = Lanes(chunk=0) if self.mesh is None else Lanes(together)
        asks = [*asks, *asks[:1] * (together - len(asks))]
        vectors = self._placed(
            np.stack([np.asarray(ask.load(), np.float32) for ask in asks])
        )
        parts = []
        for batches in zip(*(batches_of(a.rows) for a in asks), strict=True):
            arrays = [
                self._placed(np.stack(each))
                for each in zip(*(batch[1:] for batch in batches), strict=True)
            ]
            found = probe_lanes(
                vectors,
                self.params,
                *arrays,
                config=self.backbone.config,
                lanes=lanes,
                read=read,
                per_row=per_row,
            )
            parts.append(([batch.number for batch in batches], found))
        return parts

    def _placed(self, array: np.ndarray) -> Any:
        if self.mesh is None:
            return array
        return sharding.place(array, self.mesh, "data")


def _by_row(
    rows: Rows, found: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """[R, ...] of batches' row numbers and values [B, ...], in their order.

    Of words [B, T, D] some batches are narrower than others.
    """
    count = len(rows.tokens)
    shapes = [values.shape[1:] for _, values in found]
    whole = np.zeros((count + 1, *max(shapes)), np.float32)
    for number, values in found:
        here = whole[:, : values.shape[1]]
        here[number] = values
    return whole[:count]


def _read_back(
    rows: Rows, packed: Any, found: Sequence[np.ndarray], read: str
) -> np.ndarray:
    """[R, ...] of parts' read-outs, in the rows' order."""
    prompt, parts = packed
    count, width = rows.tokens.shape
    words = read == "hidden"
    inner = found[0].shape[2:]
    whole = np.zeros(
        (count, width, *inner) if words else (count, *inner), np.float32
    )
    lengths = packing.lengths_of(rows.tokens)
    for (part, _), values in zip(parts, found, strict=True):
        for slot in part.slots:
            if not words:
                whole[slot.text] = values[slot.row, slot.number]
                continue
            begin, length = slot.start + prompt, lengths[slot.text]
            whole[slot.text, :length] = values[slot.row, begin : begin + length]
    return whole
