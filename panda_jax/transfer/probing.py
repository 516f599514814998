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
from panda_jax.data.examples import AnyExamples, Examples
from panda_jax.parallel import sharding
from panda_jax.parallel.sharding import Partitioner
from panda_jax.prompts import length_of
from panda_jax.step import fleet, steps
from panda_jax.step.fleet import Lanes
from panda_jax.store.backbones import Backbone
from panda_jax.transfer.vector_cache import VectorCache
from panda_jax.types import Array, ArrayLike, Params

# Rows of a batch at most.
_ROWS = 128
# Dispatches that are under way before the oldest is waited for.
_AHEAD = 4
# Lanes at once where rows are too short to fill a device: as many as have so
# many positions in all, and so many at most.
_POSITIONS = 2048
_LANES = 16

Work = TypeVar("Work")


class Rows(NamedTuple):
    """Rows of text to probe with; a batch of padding weighs nothing.

    Attributes:
      tokens: [K, R, T] in K batches, rows of zeros at the end.
      segments: likewise.
      weights: [K, R] fp32, 1 / rows on the real ones, so that sums are means.
      name: sha256 of what they are.
      total: of the real ones.
    """

    tokens: np.ndarray
    segments: np.ndarray
    weights: np.ndarray
    name: str
    total: int


def rows_of(tokens: np.ndarray, segments: np.ndarray) -> Rows:
    """[rows, T] arrays in batches of like size, a multiple of four."""
    count, length = tokens.shape
    batches = -(-count // _ROWS)
    size = -(-count // (4 * batches)) * 4 if count > 1 else 1
    room = ((0, batches * size - count), (0, 0))
    shape = (batches, size, length)
    weights = np.pad(np.full((count, 1), 1 / count, np.float32), room)
    digest = hashlib.sha256(f"{count}".encode())
    for array in (tokens, segments):
        # Padding past the longest row changes nothing that is read.
        real = array[:, : int((tokens != 0).sum(1).max())]
        digest.update(np.ascontiguousarray(real, np.int32).tobytes())
    return Rows(
        np.pad(tokens, room).reshape(shape),
        np.pad(segments, room).reshape(shape),
        weights.reshape(batches, size),
        digest.hexdigest(),
        count,
    )


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
        cpu = jax.default_backend() == "cpu"
        self.mesh = None
        self.params = backbone.params
        if partitioner is not None or not (cpu or jax.device_count() == 1):
            partitioner = partitioner or Partitioner()
            self.mesh = partitioner.mesh(jax.device_count())
            self.params = self._placed_backbone(partitioner)

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
        waiting: dict[Any, list[tuple[Work, Ask]]] = {}
        pending: collections.deque = collections.deque()

        def dispatch(work: list[tuple[Work, Ask]]) -> None:
            parts = self._probe([ask for _, ask in work], read, per_row)
            pending.append((work, parts))

        def oldest() -> Iterator[tuple[Work, np.ndarray]]:
            work, parts = pending.popleft()
            host = [np.asarray(sharding.on_host(part)) for part in parts]
            values = np.concatenate(host, 1) if per_row else np.sum(host, 0)
            for (label, ask), value in zip(work, values, strict=False):
                yield label, value[: ask.rows.total] if per_row else value

        for item in asks:
            shape = (item[1].shape, item[1].rows.tokens.shape)
            group = waiting.setdefault(shape, [])
            group.append(item)
            if len(group) == self._together(item[1]):
                dispatch(waiting.pop(shape))
            if len(pending) > _AHEAD:
                yield from oldest()
        for group in waiting.values():
            dispatch(group)
        while pending:
            yield from oldest()

    def _together(self, ask: Ask) -> int:
        """How many of an ask's shape are computed in one dispatch."""
        if self.mesh is not None:
            return self.mesh.shape["data"]
        _, rows, length = ask.rows.tokens.shape
        fit = _POSITIONS // (rows * (length + length_of(ask.shape)))
        return min(max(fit, 1), _LANES)

    def _probe(self, asks: list[Ask], read: str, per_row: bool) -> list[Array]:
        """A part for each batch of rows; the first ask again up to full."""
        together = self._together(asks[0])
        lanes = Lanes(chunk=0) if self.mesh is None else Lanes(together)
        asks = [*asks, *asks[:1] * (together - len(asks))]
        vectors = self._placed(
            np.stack([np.asarray(ask.load(), np.float32) for ask in asks])
        )
        parts = []
        for batch in range(len(asks[0].rows.tokens)):
            arrays = [
                self._placed(np.stack([array[batch] for array in arrays]))
                for arrays in zip(*(ask.rows[:3] for ask in asks), strict=True)
            ]
            parts.append(
                probe_lanes(
                    vectors,
                    self.params,
                    *arrays,
                    config=self.backbone.config,
                    lanes=lanes,
                    read=read,
                    per_row=per_row,
                )
            )
        return parts

    def _placed(self, array: np.ndarray) -> Any:
        if self.mesh is None:
            return array
        return sharding.place(array, self.mesh, "data")
