"""Banks of prompts, as one matrix a metric."""

import dataclasses
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.config.runs import Run, make_run
from panda_jax.data.examples import AnyExamples
from panda_jax.errors import UserError, unknown_name
from panda_jax.io.files import PathLike
from panda_jax.parallel.sharding import Partitioner
from panda_jax.prompts import length_of
from panda_jax.step import steps
from panda_jax.step.steps import Trainable
from panda_jax.store.backbones import Backbone
from panda_jax.store.prompt_folders import PromptInfo, StoredPrompt
from panda_jax.training.evaluation import MAX_LENGTH, load_view
from panda_jax.training.identity import run_id
from panda_jax.training.prompt_init import initial_prompt
from panda_jax.training.step_inputs import step_spec
from panda_jax.transfer import first_steps, similarity, target_features
from panda_jax.transfer.probing import (
    Ask,
    Prober,
    Rows,
    rows_of_examples,
    rows_without_text,
)
from panda_jax.transfer.transfer_metrics import Measure
from panda_jax.types import ArrayLike

# Training rows a task.
EXAMPLES = 100
# Prompts that are compared, and readouts that are fitted, at a time.
_BLOCK = 256
_FITTED = 8

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Options:
    """How metrics read what they read.

    Attributes:
      data_dir: folder of the tasks' files; default `PANDA_DATA_DIR`.
      tfds_data_dir: of TFDS, where there is no `data_dir`.
      examples: training rows of a task in its labels' proportions, independent
        of any seed; metric first_steps learns from as many and is judged by as
        many.
      max_length: of the text, in pieces; None for each prompt's own.
      readout: the output that panda and the features' metrics read: `pooled`,
        `first`, `mean`, or `layer_3`, the third layer's mean.
      contrast: panda: less the output without the prompt.
      on_layers: on: `3:6` for the fourth to the sixth layer; None for all.
      on_input: on: `empty`, special tokens only, or `examples`, the mean over
        each task's rows.
      on_binarised: on: whether a neuron is active, or how much.
      steps: of first_steps.
      seed: of the start that gradient and first_steps begin at.
      cached: keep on disk what was read, by the prompts' hashes.
      partitioner: how devices are shared out; by default all of an
        accelerator's, and one of a CPU's.
    """

    data_dir: PathLike | None = None
    tfds_data_dir: PathLike | None = None
    examples: int = EXAMPLES
    max_length: int | None = None
    readout: str = "mean"
    contrast: bool = False
    on_layers: str | None = None
    on_input: str = "empty"
    on_binarised: bool = True
    steps: int = 30
    seed: int = 0
    cached: bool = True
    partitioner: Partitioner | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"layer_\d+", self.readout):
            similarity.check_readout(self.readout)
        if self.on_input not in ("empty", "examples"):
            raise unknown_name("on_input", self.on_input, ("empty", "examples"))
        if self.on_layers and not re.fullmatch(r"\d*:\d*", self.on_layers):
            raise UserError(
                f"on_layers is {self.on_layers!r}, expected FROM:TO, as 3:6."
            )
        for name in ("examples", "steps"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name} is {getattr(self, name)}, expected 1 or more."
                )


@dataclasses.dataclass(frozen=True)
class Entry:
    """A source or target: what is known of a prompt without holding it.

    Attributes:
      name: in the bank.
      task: whose rows it is read on.
      info: of the prompt; None for a task without one.
      shape: of its vectors.
      hash: of them.
      load: reads it.
    """

    name: str
    task: str
    info: PromptInfo | None = None
    shape: tuple[int, ...] = ()
    hash: str = ""
    load: Callable[[], StoredPrompt] | None = None

    @property
    def length(self) -> int | None:
        """The longest text that the prompt was trained on."""
        return self.info.max_length if self.info else None

    @property
    def prompt_length(self) -> int:
        """P."""
        return length_of(self.shape)

    def vectors(self) -> ArrayLike:
        """The prompt's, read anew."""
        assert self.load is not None
        return self.load().prompt.vectors


class Scorer:
    """Scores of M sources for N targets.

    Args:
      backbone: that all prompts are of; None where no metric runs it.
      sources: all with prompts.
      targets: tasks among them have none.
      measures: all that will be asked for.
      options: of the metrics.
    """

    def __init__(
        self,
        backbone: Backbone | None,
        sources: Sequence[Entry],
        targets: Sequence[Entry],
        measures: Sequence[Measure],
        options: Options,
    ) -> None:
        self.sources, self.targets = sources, targets
        self.measures, self.options = measures, options
        self._fitted: dict[str, list[np.ndarray]] | None = None
        self._loaded: dict[Any, AnyExamples] = {}
        if backbone is not None:
            self.backbone = backbone
            self.prober = Prober(
                backbone,
                partitioner=options.partitioner,
                cached=options.cached,
            )
            self._check_layers(backbone.config.layers)

    def matrix(self, measure: Measure) -> np.ndarray:
        """[M, N] of one metric; NaN in the column of a target that has none.

        Raises:
          UserError: a target without a prompt, or prompts of several shapes,
            where the metric cannot do with them.
        """
        if measure.needs_target_prompt:
            for target in self.targets:
                if target.load is None:
                    raise UserError(
                        f"Target {target.name!r} is a task without a prompt; "
                        f"metric {measure.name!r} compares two prompts. Train "
                        "one (panda-jax train --method=prompt) and give its "
                        "folder, or ask for a metric of the target's training "
                        "labels: logme, h_score, probe, gradient or "
                        "first_steps."
                    )
        found = {
            "vectors": self._vectors,
            "output": self._outputs,
            "neurons": self._neurons,
            "features": self._features,
            "gradient": self._gradients,
            "training": self._training,
        }[measure.reads](measure)
        return np.asarray(found, np.float64)

    def _check_layers(self, layers: int) -> None:
        options = self.options
        number = re.fullmatch(r"layer_(\d+)", options.readout)
        if number and not 1 <= int(number[1]) <= layers:
            raise UserError(
                f"readout is {options.readout!r}; the backbone has layers 1 "
                f"to {layers}."
            )
        if not range(layers)[self._layers()]:
            raise UserError(
                f"on_layers is {options.on_layers!r}, none of the backbone's "
                f"{layers} layers (0 to {layers - 1})."
            )

    def _layers(self) -> slice:
        ends = (self.options.on_layers or ":").split(":")
        return slice(*(int(end) if end else None for end in ends))

    # What is read

    def _examples(self, entry: Entry, count: int) -> AnyExamples:
        """Rows of the training split, never of the evaluation split."""
        length = self.options.max_length or entry.length or MAX_LENGTH
        key = (entry.task, length, count)
        if key not in self._loaded:
            self._loaded[key] = load_view(
                entry.task,
                "train",
                backbone=self.backbone,
                max_length=length,
                data_dir=self.options.data_dir,
                tfds_data_dir=self.options.tfds_data_dir,
                limit=count,
            )
        return self._loaded[key]

    def _rows(self, entry: Entry) -> Rows:
        return rows_of_examples(self._examples(entry, self.options.examples))

    def _ask(self, entry: Entry, rows: Rows) -> Ask:
        return Ask(entry.vectors, entry.shape, entry.hash, rows)

    def _same_shape(self, measure: Measure, entries: Sequence[Entry]) -> None:
        first = entries[0]
        for entry in entries:
            if entry.shape != first.shape:
                raise UserError(
                    f"Metric {measure.name!r} needs prompts of one shape: "
                    f"{first.name!r} has {first.shape}, {entry.name!r} has "
                    f"{entry.shape}. Score them apart, or by metric panda, "
                    "which compares outputs."
                )

    # Prompts against prompts

    def _vectors(self, measure: Measure) -> np.ndarray:
        self._same_shape(measure, [*self.sources, *self.targets])
        if len(self.sources) <= _BLOCK and self.targets == self.sources:
            both = _vectors_of(self.sources)
            return np.asarray(measure.function(both, both))
        rows = []
        for begin in range(0, len(self.sources), _BLOCK):
            block = _vectors_of(self.sources[begin : begin + _BLOCK])
            columns = [
                np.asarray(measure.function(block, _vectors_of(part)))
                for part in _blocks(self.targets)
            ]
            rows.append(np.concatenate(columns, 1))
        return np.concatenate(rows)

    def _outputs(self, measure: Measure) -> np.ndarray:
        def read(entries: Sequence[Entry]) -> np.ndarray:
            rows = [self._rows(entry) for entry in entries]
            asks = [
                self._ask(*each) for each in zip(entries, rows, strict=True)
            ]
            found = self._mean_outputs(asks)
            if self.options.contrast:
                empty = np.asarray(self.backbone.empty_vectors)
                bare = [Ask(lambda: empty, empty.shape, "", r) for r in rows]
                found = found - self._mean_outputs(bare)
            return found

        return np.asarray(measure.function(*self._of_both(read)))

    def _of_both(
        self, read: Callable[[Sequence[Entry]], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is read of sources and of targets; once where they are one."""
        first = read(self.sources)
        same = self.targets is self.sources
        return first, first if same else read(self.targets)

    def _mean_outputs(self, asks: list[Ask]) -> np.ndarray:
        name, layer = self._read()
        found = np.stack(self.prober.read(asks, name))
        return found if layer is None else found[:, layer]

    def _read(self) -> tuple[str, int | None]:
        """What of `steps.probe` the readout is, and of which layer."""
        number = re.fullmatch(r"layer_(\d+)", self.options.readout)
        if number:
            return "layers", int(number[1]) - 1
        return self.options.readout, None

    def _neurons(self, measure: Measure) -> np.ndarray:
        empty = rows_without_text(self.backbone)
        on_text = self.options.on_input == "examples"

        def read(entries: Sequence[Entry]) -> np.ndarray:
            asks = [
                self._ask(entry, self._rows(entry) if on_text else empty)
                for entry in entries
            ]
            found = np.stack(self.prober.read(asks, "neurons"))
            return found[:, self._layers()]

        return np.asarray(
            measure.function(
                *self._of_both(read), binarised=self.options.on_binarised
            )
        )

    # Prompts against the labels of a target's training rows

    def _features(self, measure: Measure) -> np.ndarray:
        """The features are read once for all metrics that are asked for."""
        if self._fitted is None:
            asked = [m for m in self.measures if m.reads == "features"]
            self._fitted = {m.name: [] for m in asked}
            for target in self.targets:
                for name, column in self._fits(asked, target).items():
                    self._fitted[name].append(column)
        return np.stack(self._fitted[measure.name], 1)

    def _fits(
        self, asked: Sequence[Measure], target: Entry
    ) -> dict[str, np.ndarray]:
        """[M] a metric: one number a source, of its own features."""
        examples = self._examples(target, self.options.examples)
        data = target_features.labelled(target.task, examples)
        if data is None:
            return {m.name: self._unlabelled(m, target) for m in asked}
        read, layer = self._read()
        if data.words is not None:
            read, layer = "hidden", None
        asks = [self._ask(source, data.rows) for source in self.sources]
        cache, found = self.prober.cache, {}
        for measure in asked:
            for ask in asks:
                key = self.prober.key(
                    ask, measure.name, self.options.readout, data.name
                )
                found[measure.name, ask.hash] = (key, cache.get(key))
        missing = {
            ask.hash: ask
            for ask in asks
            if any(found[m.name, ask.hash][1] is None for m in asked)
        }
        block: dict[str, np.ndarray] = {}

        def fit() -> None:
            rows = [*block.values()]
            rows += rows[:1] * (_FITTED - len(rows))
            for measure in asked:
                groups = {}
                if measure.name == "probe":
                    groups["groups"] = data.groups
                scores = measure.function(
                    np.stack(rows),
                    data.targets,
                    num_classes=data.classes,
                    **groups,
                )
                for name, value in zip(block, scores, strict=False):
                    key, _ = found[measure.name, name]
                    found[measure.name, name] = (key, np.asarray(value))
                    cache.put(key, np.asarray(value))
            block.clear()

        for name, rows in self.prober.features(missing.items(), read):
            rows = rows if layer is None else rows[:, layer]
            block[name] = target_features.features(rows, data)
            if len(block) == _FITTED:
                fit()
        if block:
            fit()
        return {
            m.name: np.array([found[m.name, ask.hash][1] for ask in asks])
            for m in asked
        }

    def _unlabelled(self, measure: Measure, target: Entry) -> np.ndarray:
        """A named skip: an empty column, and a warning that says why."""
        warnings.warn(
            f"Metric {measure.name!r} leaves target {target.name!r} out: the "
            f"training rows of {target.task!r} that were read have no classes "
            "(two at least), scores or tags to fit a readout to.",
            RuntimeWarning,
            stacklevel=2,
        )
        return np.full(len(self.sources), np.nan)

    def _run(self, target: Entry, **settings: Any) -> Run:
        """A run on the target with the sources' kind and length of prompt."""
        shape = self.sources[0].shape
        deep = len(shape) == 5
        return make_run(
            task=target.task,
            backbone=self.backbone.id,
            seed=self.options.seed,
            prompt_kind="deep" if deep else "shallow",
            prompt_length=shape[2 if deep else 0],
            max_length=self.options.max_length or target.length or MAX_LENGTH,
            **settings,
        ).for_family(text_to_text=self.backbone.text_to_text)

    def _gradients(self, measure: Measure) -> np.ndarray:
        self._same_shape(measure, self.sources)
        columns = []
        for target in self.targets:
            examples = self._examples(target, self.options.examples)
            run = self._run(target)
            start = initial_prompt(run, self.backbone, None)
            gradient = self._gradient(run, target, examples, start)
            if gradient is None:
                columns.append(self._unlabelled(measure, target))
                continue
            parts = [
                measure.function(
                    _vectors_of(block),
                    starts=np.asarray(start.vectors)[None],
                    gradients=np.asarray(gradient)[None],
                )
                for block in _blocks(self.sources)
            ]
            columns.append(np.concatenate(parts)[:, 0])
        return np.stack(columns, 1)

    def _gradient(
        self, run: Run, target: Entry, examples: AnyExamples, start: Any
    ) -> Any:
        """Of the target's loss at its start: a writer's own, or a readout's."""
        backbone = self.backbone
        if backbone.text_to_text:
            return _text_gradient(run, backbone, examples, start)
        data = target_features.labelled(target.task, examples)
        if data is None:
            return None
        name, layer = self._read()
        rows = data.rows
        return target_features.readout_gradient(
            start.vectors,
            backbone.params,
            rows.tokens,
            rows.segments,
            target_features.columns_of(data),
            data.words,
            config=backbone.config,
            read="hidden" if data.words is not None else name,
            layer=layer if data.words is None else None,
        )

    def _training(self, measure: Measure) -> np.ndarray:
        self._same_shape(measure, self.sources)
        columns = []
        for target in self.targets:
            # A source's resized prompt would be another prompt's score.
            run = self._run(target, method="pot", steps=self.options.steps)
            examples = self._examples(target, 2 * self.options.examples)
            losses = self._first_losses(run, examples)
            found = measure.function(losses)
            for source, score in zip(self.sources, found, strict=True):
                if np.isnan(score):
                    warnings.warn(
                        f"Metric {measure.name!r}: the steps on "
                        f"{target.name!r} from {source.name!r} diverged; the "
                        "pair has no score.",
                        RuntimeWarning,
                        stacklevel=2,
                    )
            columns.append(found)
        return np.stack(columns, 1)

    def _first_losses(self, run: Run, examples: AnyExamples) -> np.ndarray:
        """[M] losses after the first steps; runs only what was not kept."""
        cache, backbone = self.prober.cache, self.backbone
        about = [run_id(run, {}), examples.fingerprint, backbone.fingerprint]
        keys = [
            cache.key([entry.hash, *about, str(backbone.config)])
            for entry in self.sources
        ]
        found = {key: cache.get(key) for key in keys}
        new = {
            key: entry
            for key, entry in zip(keys, self.sources, strict=True)
            if found[key] is None
        }
        for block in _blocks(list(new.items())):
            losses = first_steps.first_steps_losses(
                backbone,
                run,
                [entry.load() for _, entry in block if entry.load],
                examples,
                partitioner=self.options.partitioner,
            )
            for (key, _), loss in zip(block, losses, strict=True):
                found[key] = loss
                cache.put(key, loss)
        return np.array([found[key] for key in keys])


def _vectors_of(entries: Sequence[Entry]) -> np.ndarray:
    return np.stack([np.asarray(entry.vectors()) for entry in entries])


def _blocks(entries: Sequence[T]) -> list[Sequence[T]]:
    return [
        entries[begin : begin + _BLOCK]
        for begin in range(0, len(entries), _BLOCK)
    ]


def _text_gradient(
    run: Run, backbone: Backbone, examples: AnyExamples, start: Any
) -> ArrayLike:
    """The gradient of the loss of the right answers' text."""
    spec = step_spec(dataclasses.replace(run, dropout=0.0), backbone)
    batch = jax.tree.map(jnp.asarray, examples.batch(np.arange(len(examples))))
    key = jax.random.key(0)
    hyper = steps.Hyper(*(np.float32(0),) * 4, key=key)

    @jax.jit
    def gradient(trainable: Trainable, params: Any) -> Trainable:
        return jax.grad(steps.loss_and_metrics, has_aux=True)(
            trainable, params, batch, None, None, hyper, key, spec=spec
        )[0]

    return gradient(Trainable(start), backbone.params).prompt.vectors
