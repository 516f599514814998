"""SeqIO preprocessors and the feature converter of encoders.

Imports TensorFlow.  A task's source yields a row as JSON (`row`) and its
number in the split (`question`); what a row becomes is decided in plain
Python, by `tasks.encoding` and `tasks.views`.
"""

# TensorFlow's and SeqIO's own annotations are incomplete or too narrow.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from panda_jax.tasks import encoding, views
from panda_jax.tasks.spec import TaskSpec

from panda_jax.data.tokenizer import Tokenizer

Features = Mapping[str, seqio.Feature]
Preprocessor = Callable[..., tf.data.Dataset]
Spec = seqio.FeatureConverter.FeatureSpec

# Rows that are encoded at a time: ten times as fast as one by one.
_ROWS = 256


def encoder_features(spec: TaskSpec) -> dict[str, tuple[tf.DType, int]]:
    """Name -> (dtype, rank) of each feature of the encoder's view.

    `inputs` and `segment_ids` [T]; `targets`: [] int32 class id, 1 or 0 for a
    candidate, [] float32 score, [T] tag ids + 1, or [2] positions; `question`
    []: which row of the source it comes from; `reference` []: JSON of what an
    answer is judged by, on the first of a row's examples alone; `cut` []: 1
    where the length left something out; of kind span `char_starts` and
    `char_ends` [T].  See `tasks.encoding.Encoded`.
    """
    number = tf.float32 if spec.kind == "regression" else tf.int32
    features = {
        "inputs": (tf.int32, 1),
        "segment_ids": (tf.int32, 1),
        "targets": (number, int(spec.kind in ("tags", "span"))),
        "question": (tf.int32, 0),
        "reference": (tf.string, 0),
        "cut": (tf.int32, 0),
    }
    if spec.kind == "span":
        features |= {"char_starts": (tf.int32, 1), "char_ends": (tf.int32, 1)}
    return features


def encode_rows(spec: TaskSpec) -> Preprocessor:
    """A preprocessor: rows to the encoder's features.

    A row becomes one example, or one a candidate (kind choice) or window of
    the context (kind span).
    """
    features = encoder_features(spec)

    def preprocess(
        dataset: tf.data.Dataset,
        output_features: Features,
        sequence_length: Mapping[str, int],
    ) -> tf.data.Dataset:
        tokenizer: Tokenizer = output_features["inputs"].vocabulary.tokenizer
        max_length = sequence_length["inputs"]

        def encode(rows: np.ndarray, questions: np.ndarray) -> list[np.ndarray]:
            values = [json.loads(row) for row in rows]
            encoded = encoding.encode(
                spec, values, tokenizer=tokenizer, max_length=max_length
            )
            return _columns(spec, values, questions.tolist(), encoded)

        def to_features(
            batch: Mapping[str, tf.Tensor],
        ) -> dict[str, tf.Tensor]:
            ranked = [(name, *features[name]) for name in features]
            types = [dtype for _, dtype, _ in ranked]
            lengths = [tf.int64 for _, _, rank in ranked if rank]
            arrays = [
                tf.ensure_shape(array, [None])
                for array in tf.numpy_function(
                    encode,
                    [batch["row"], batch["question"]],
                    [*types, *lengths],
                )
            ]
            flat, sizes = arrays[: len(ranked)], arrays[len(ranked) :]
            made = {}
            for (name, _, rank), array in zip(ranked, flat, strict=True):
                made[name] = (
                    tf.RaggedTensor.from_row_lengths(array, sizes.pop(0))
                    if rank
                    else array
                )
            return made

        return dataset.batch(_ROWS).map(to_features).unbatch()

    return preprocess


def _columns(
    spec: TaskSpec,
    rows: list[views.Row],
    questions: list[int],
    encoded: list[list[encoding.Encoded]],
) -> list[np.ndarray]:
    """The flat values of each feature, then the lengths of the ranked ones."""
    columns: dict[str, list[list[Any]]] = {
        name: [] for name in encoder_features(spec)
    }
    for row, question, group in zip(rows, questions, encoded, strict=True):
        reference = json.dumps(views.reference(spec, row)).encode()
        for i, example in enumerate(group):
            values = {
                "inputs": example.tokens,
                "segment_ids": example.segments,
                "targets": example.labels,
                "question": [question],
                "reference": [b"" if i else reference],
                "cut": [int(example.cut)],
                "char_starts": example.starts,
                "char_ends": example.ends,
            }
            for name, column in columns.items():
                column.append(values[name])
    flat, lengths = [], []
    for name, (dtype, rank) in encoder_features(spec).items():
        values = [x for part in columns[name] for x in part]
        flat.append(np.array(values, dtype.as_numpy_dtype))
        if rank:
            sizes = [len(part) for part in columns[name]]
            lengths.append(np.array(sizes, np.int64))
    return [*flat, *lengths]


def text_rows(spec: TaskSpec) -> Preprocessor:
    """A preprocessor: rows to the texts `inputs` and `targets`, `reference`.

    `seqio.preprocessors.tokenize` comes after it.
    """

    def convert(rows: np.ndarray) -> list[np.ndarray]:
        values = [json.loads(row) for row in rows]
        texts = [views.text_example(spec, row) for row in values]
        references = [views.reference(spec, row) for row in values]
        return [
            np.array([text.encode() for text in column], object)
            for column in (
                [a for a, _ in texts],
                [b for _, b in texts],
                [json.dumps(value) for value in references],
            )
        ]

    def to_texts(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        arrays = tf.numpy_function(convert, [batch["row"]], [tf.string] * 3)
        inputs, targets, references = (
            tf.ensure_shape(array, [None]) for array in arrays
        )
        return {
            "inputs": inputs,
            "targets": targets,
            "reference": references,
        }

    def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset.batch(_ROWS).map(to_texts).unbatch()

    return preprocess


def model_name(feature: str) -> str:
    """What the model calls a feature of the task."""
    return {
        "inputs": "encoder_input_tokens",
        "segment_ids": "encoder_segment_ids",
        "targets": "labels",
    }.get(feature, feature)


class EncoderFeatureConverter(seqio.FeatureConverter):
    """Task features to what a BERT-like encoder takes.

    `inputs` [T'] -> `encoder_input_tokens` [T], `segment_ids` [T'] ->
    `encoder_segment_ids` [T] (both padded with 0 to the requested length),
    `targets` -> `labels`; the others keep their names.  Here segment ids are
    BERT's token types, not the packing ids of `seqio.EncoderFeatureConverter`:
    nothing is packed.
    """

    PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

    def __init__(self, spec: TaskSpec) -> None:
        """The converter of one task, whose kind decides the features."""
        self.TASK_FEATURES = {
            name: Spec(dtype=dtype, rank=rank)
            for name, (dtype, rank) in encoder_features(spec).items()
        }
        self.MODEL_FEATURES = {
            model_name(name): feature
            for name, feature in self.TASK_FEATURES.items()
        }
        super().__init__(pack=False)

    def _convert_features(
        self,
        ds: tf.data.Dataset,
        task_feature_lengths: Mapping[str, int],
    ) -> tf.data.Dataset:
        lengths = {
            name: task_feature_lengths[name]
            for name, feature in self.TASK_FEATURES.items()
            if feature.rank
        }

        @seqio.map_over_dataset
        def rename(row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {model_name(name): value for name, value in row.items()}

        return rename(self._pack_or_pad(ds, lengths))

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        """The lengths of the model features for those of the task's."""
        return {
            model_name(name): length
            for name, length in task_feature_lengths.items()
        }


def sequence_lengths(spec: TaskSpec, max_length: int) -> dict[str, int | None]:
    """The lengths that SeqIO takes for the encoder's view; None: scalar."""
    lengths: dict[str, int | None] = {}
    for name, (_, rank) in encoder_features(spec).items():
        lengths[name] = max_length if rank else None
    if spec.kind == "span":
        lengths["targets"] = 2
    return lengths
