"""SeqIO preprocessors and the feature converter of encoders.

Imports TensorFlow.
"""

# TensorFlow's and SeqIO's own annotations are incomplete or too narrow.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false

import string
from collections.abc import Callable, Mapping

import numpy as np
import seqio
import tensorflow as tf

from panda_jax.tokenizer import Tokenizer

Features = Mapping[str, seqio.Feature]
Spec = seqio.FeatureConverter.FeatureSpec


def format_texts(
    text_a: str, text_b: str | None
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """A preprocessor that fills templates such as `"{premise}"`.

    It turns a row's fields into `text_a`, `text_b` (pairs only) and
    `targets` (the label).
    """
    templates = {"text_a": text_a} | ({"text_b": text_b} if text_b else {})

    def render(template: str, row: Mapping[str, tf.Tensor]) -> tf.Tensor:
        parts = []
        for literal, name, _, _ in string.Formatter().parse(template):
            parts += [tf.constant(literal)] if literal else []
            parts += [row[name]] if name else []
        return tf.strings.join(parts)

    @seqio.map_over_dataset
    def fill(row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        texts = {key: render(text, row) for key, text in templates.items()}
        return texts | {"targets": row["label"]}

    return fill


def tokenize_and_pack(
    dataset: tf.data.Dataset,
    output_features: Features,
    sequence_length: Mapping[str, int],
) -> tf.data.Dataset:
    """A preprocessor: texts to `[CLS] a [SEP] b [SEP]` and its segments.

    `seqio.preprocessors.tokenize` and the packing run on batches of rows,
    ten times as fast as row by row.  Rows are cut, longest text first, to
    the length of `inputs`.
    """
    texts = dict.fromkeys(("text_a", "text_b"), output_features["inputs"])
    tokenizer: Tokenizer = output_features["inputs"].vocabulary.tokenizer
    length = sequence_length["inputs"]

    def pair(*parts: np.ndarray) -> tuple[np.ndarray, ...]:
        columns = [
            np.split(ids, np.cumsum(lengths)[:-1])
            for ids, lengths in zip(parts[::2], parts[1::2], strict=True)
        ]
        if len(columns) == 1:
            columns.append([None] * len(columns[0]))
        rows = [
            tokenizer.pair(a, b, length) for a, b in zip(*columns, strict=True)
        ]
        return (
            np.concatenate([tokens for tokens, _ in rows]).astype(np.int32),
            np.concatenate([segments for _, segments in rows]).astype(np.int32),
            np.array([len(tokens) for tokens, _ in rows], np.int64),
        )

    def pack(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        parts = []
        for key in texts:
            if key in batch:
                parts += [batch[key].flat_values, batch[key].row_lengths()]
        tokens, segments, lengths = (
            tf.ensure_shape(array, [None])
            for array in tf.numpy_function(
                pair, parts, [tf.int32, tf.int32, tf.int64]
            )
        )
        ragged = tf.RaggedTensor.from_row_lengths
        return {
            "inputs": ragged(tokens, lengths),
            "segment_ids": ragged(segments, lengths),
            "targets": batch["targets"],
        }

    batches = seqio.preprocessors.tokenize(
        dataset.batch(256), texts, copy_pretokenized=False
    )
    return batches.map(pack).unbatch()


class EncoderFeatureConverter(seqio.FeatureConverter):
    """Task features to what a BERT-like encoder takes.

    `inputs` [T'] -> `encoder_input_tokens` [T], `segment_ids` [T'] ->
    `encoder_segment_ids` [T] (both padded with 0 to the requested length),
    `targets` [] -> `labels` [].  Here segment ids are BERT's token types, not
    the packing ids of `seqio.EncoderFeatureConverter`: nothing is packed.
    """

    PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

    def __init__(self, *, label_dtype: tf.DType = tf.int32) -> None:
        """`label_dtype` is `tf.int32`, or `tf.float32` for regression."""
        self.TASK_FEATURES = {
            "inputs": Spec(dtype=tf.int32),
            "segment_ids": Spec(dtype=tf.int32),
            "targets": Spec(dtype=label_dtype, rank=0),
        }
        self.MODEL_FEATURES = {
            "encoder_input_tokens": Spec(dtype=tf.int32),
            "encoder_segment_ids": Spec(dtype=tf.int32),
            "labels": Spec(dtype=label_dtype, rank=0),
        }
        super().__init__(pack=False)

    def _convert_features(
        self,
        ds: tf.data.Dataset,
        task_feature_lengths: Mapping[str, int],
    ) -> tf.data.Dataset:
        lengths = {
            key: task_feature_lengths[key] for key in ("inputs", "segment_ids")
        }

        @seqio.map_over_dataset
        def rename(row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {
                "encoder_input_tokens": row["inputs"],
                "encoder_segment_ids": row["segment_ids"],
                "labels": row["targets"],
            }

        return rename(self._pack_or_pad(ds, lengths))

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        """The lengths of the model features for those of the task's."""
        return {
            "encoder_input_tokens": task_feature_lengths["inputs"],
            "encoder_segment_ids": task_feature_lengths["segment_ids"],
            "labels": task_feature_lengths["targets"],
        }
