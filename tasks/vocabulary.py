"""SeqIO vocabularies over our tokenizers.  Imports TensorFlow."""

# TensorFlow's and SeqIO's own annotations are incomplete or too narrow.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.data.tokenizer import Tokenizer


class WordPieceVocabulary(seqio.Vocabulary):
    """WordPiece ids in Python and in `tf.data`, without special tokens.

    Two vocabularies are equal when their tokenizers' fingerprints are.
    There is no end-of-sequence token: `[SEP]` is put by the packing step.
    """

    def __init__(self, tokenizer: Tokenizer | TextTokenizer) -> None:
        super().__init__()
        self.tokenizer: Any = tokenizer

    @property
    def bos_id(self) -> int | None:
        """The id of `[CLS]`."""
        return self.tokenizer.cls_id

    @property
    def eos_id(self) -> int | None:
        """None: decoding must not stop at the first `[SEP]` of a pair."""
        return None

    @property
    def unk_id(self) -> int:
        """The id of `[UNK]`."""
        return self.tokenizer.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def _encode(self, s: Any) -> Sequence[int]:
        return self.tokenizer.encode([s])[0]

    def _decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        """Ids [T] of a scalar string, or a ragged [E, T] of strings [E]."""

        def encode(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            ids = self.tokenizer.encode([text.decode() for text in texts])
            flat = np.fromiter((i for row in ids for i in row), np.int32)
            return flat, np.array([len(row) for row in ids], np.int64)

        flat, lengths = tf.numpy_function(
            encode, [tf.reshape(s, [-1])], [tf.int32, tf.int64]
        )
        flat = tf.ensure_shape(flat, [None])
        if s.shape.rank == 0:
            return flat
        lengths = tf.ensure_shape(lengths, [None])
        return tf.RaggedTensor.from_row_lengths(flat, lengths)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Text of ids [T] (a scalar) or [E, T] (strings [E])."""

        def decode(rows: np.ndarray) -> np.ndarray:
            texts = [self.tokenizer.decode(row).encode() for row in rows]
            return np.array(texts, object)

        rows = tf.reshape(ids, [-1, tf.shape(ids)[-1]])
        texts = tf.numpy_function(decode, [rows], tf.string)
        return tf.reshape(texts, tf.shape(ids)[:-1])

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, WordPieceVocabulary)
            and self.tokenizer.fingerprint == other.tokenizer.fingerprint
        )

    def __hash__(self) -> int:
        return hash(self.tokenizer.fingerprint)

    def __str__(self) -> str:
        tokenizer = self.tokenizer
        return (
            f"{type(self).__name__}(size={tokenizer.vocab_size}, "
            f"fingerprint={tokenizer.fingerprint})"
        )


class TextVocabulary(WordPieceVocabulary):
    """The same of a text-to-text model's `tokenizer.json`, which has an end."""

    @property
    def bos_id(self) -> None:
        """None: texts begin with their first piece."""
        return None

    @property
    def eos_id(self) -> int:
        """The id of the end of sequence."""
        return self.tokenizer.eos_id
