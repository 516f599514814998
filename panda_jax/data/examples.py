"""A split as arrays: rows of tokens, and the questions that they belong to."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from panda_jax.types import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """E questions as R rows of tokens.

    A row is a question, except of kind choice (one row a candidate) and of
    kind span (one row a window of the context).

    Attributes:
      kind: of the task, see `tasks.spec`.
      tokens: [R, T] int32 ids, `[CLS] a [SEP] b [SEP]`, 0-padded.
      segments: [R, T] int32, 1 on the second text and its `[SEP]`, else 0.
      labels: [R] int32 class ids, or 1 and 0 for right and wrong candidates;
        [R] float32 scores; [R, T] int32 tag ids, -1 where nothing is to be
        said; [R, 2] int32 first and last position of the answer.
      question: [R] int32, ascending: which question a row belongs to.
      references: JSON list of E objects: what answers are judged by.
      char_starts: [R, T] int32 of kind span: 1 + where a token begins in the
        context, 0 where it is not of the context; else None.
      char_ends: likewise, 1 + where it ends (exclusive).
      cut: [R] bool: whether the length left out a part of the row; None where
        nobody asked.
    """

    kind: str
    tokens: np.ndarray
    segments: np.ndarray
    labels: np.ndarray
    question: np.ndarray
    references: bytes
    char_starts: np.ndarray | None = None
    char_ends: np.ndarray | None = None
    cut: np.ndarray | None = None

    def __len__(self) -> int:
        """How many things a batch draws from: questions of kind choice, so
        that no batch splits one, else rows."""
        return self.questions if self.kind == "choice" else len(self.tokens)

    @property
    def questions(self) -> int:
        """E."""
        return int(self.question[-1]) + 1

    @functools.cached_property
    def parsed_references(self) -> list[dict[str, Any]]:
        """`references` as values; read on first use, for scoring alone."""
        return json.loads(self.references)

    @functools.cached_property
    def _first_rows(self) -> np.ndarray:
        """[E + 1] where each question's rows begin."""
        return np.searchsorted(self.question, np.arange(self.questions + 1))

    @functools.cached_property
    def choices(self) -> int:
        """K: the most rows of one question."""
        return int(np.diff(self._first_rows).max())

    @property
    def cut_rows(self) -> int:
        """How many questions have a row that is cut."""
        cut = np.zeros(0, bool) if self.cut is None else self.cut
        return len(np.unique(self.question[: len(cut)][cut]))

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the rows and their order, independent of T."""
        longest = longest_row(self.tokens)
        digest = hashlib.sha256(
            f"{self.kind} {len(self.tokens)} {longest}".encode()
        )
        wide = (self.tokens, self.segments)
        wide += (self.labels,) if self.kind == "tags" else ()
        for array in wide:
            digest.update(np.ascontiguousarray(array[:, :longest]).tobytes())
        for array in (self.labels, self.question):
            if array.ndim == 1 or self.kind == "span":
                digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(self.references)
        return digest.hexdigest()

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """Which rows of tokens a batch of `chosen` [B] takes.

        Returns:
          [B], or [B, K] of kind choice, with -1 past a question's last row.
        """
        if self.kind != "choice":
            return chosen
        first = self._first_rows
        rows = first[chosen][:, None] + np.arange(self.choices)
        return np.where(rows < first[chosen + 1][:, None], rows, -1)

    def batch(self, chosen: np.ndarray) -> Batch:
        """The batch of `chosen` [B], from 0 to `len(self) - 1`."""
        rows = self.rows(chosen)
        if self.kind != "choice":
            return Batch(
                self.tokens[rows], self.segments[rows], self.labels[rows]
            )
        real = rows >= 0
        return Batch(
            self.tokens[rows] * real[..., None],
            self.segments[rows] * real[..., None],
            np.where(real, self.labels[rows], -1),
        )

    def of_rows(self, rows: np.ndarray) -> "Examples":
        """Some rows, to read: questions and references are the whole's."""
        tokens, segments = self.tokens[rows], self.segments[rows]
        return dataclasses.replace(self, tokens=tokens, segments=segments)

    def subset(self, questions: Sequence[int]) -> "Examples":
        """These questions alone, in this order, with all their rows.

        As wide as the longest of them, up to a multiple of 8.
        """
        first = self._first_rows
        rows = np.concatenate(
            [np.arange(first[q], first[q + 1]) for q in questions]
        )
        sizes = [first[q + 1] - first[q] for q in questions]
        kept = [self.parsed_references[q] for q in questions]
        width = -(-longest_row(self.tokens[rows]) // 8) * 8
        wide = {
            name
            for name, array in self.row_arrays().items()
            if array.shape[1:] == self.tokens.shape[1:]
        }
        if self.kind == "span":
            wide.discard("labels")
        return dataclasses.replace(
            self,
            question=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
            references=json.dumps(kept).encode(),
            **{
                name: array[rows, :width] if name in wide else array[rows]
                for name, array in self.row_arrays().items()
                if name != "question"
            },
        )

    def widened(self, width: int) -> "Examples":
        """The same rows, padded to `width` tokens."""
        room = width - self.tokens.shape[1]
        wide = {"tokens": 0, "segments": 0, "char_starts": 0, "char_ends": 0}
        if self.kind == "tags":
            wide["labels"] = -1
        arrays = self.row_arrays()
        return dataclasses.replace(
            self,
            **{
                name: np.pad(
                    arrays[name], ((0, 0), (0, room)), constant_values=value
                )
                for name, value in wide.items()
                if name in arrays
            },
        )

    def row_arrays(self) -> dict[str, np.ndarray]:
        """Name -> array, of all that has one entry a row."""
        names = (
            "tokens",
            "segments",
            "labels",
            "question",
            "char_starts",
            "char_ends",
            "cut",
        )
        arrays = {name: getattr(self, name) for name in names}
        return {k: array for k, array in arrays.items() if array is not None}


@dataclasses.dataclass(frozen=True, eq=False)
class TextExamples:
    """E examples from text to text.

    Attributes:
      inputs: [E, T] int32 ids, 0-padded; the last is the end of sequence.
      targets: [E, U] likewise.
      references: JSON list of E objects: what answers are judged by.
      cut: [E] bool: whether a length left out a part of the input or of the
        target; None where nobody asked.
    """

    inputs: np.ndarray
    targets: np.ndarray
    references: bytes
    cut: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def questions(self) -> int:
        """E."""
        return len(self.inputs)

    @property
    def tokens(self) -> np.ndarray:
        """The inputs, as encoders name theirs."""
        return self.inputs

    @property
    def cut_rows(self) -> int:
        """How many rows are cut."""
        return 0 if self.cut is None else int(self.cut.sum())

    @functools.cached_property
    def parsed_references(self) -> list[dict[str, Any]]:
        """`references` as values."""
        return json.loads(self.references)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the rows and their order, independent of T and U."""
        digest = hashlib.sha256(f"text {len(self)}".encode())
        for array in (self.inputs, self.targets):
            longest = longest_row(array)
            digest.update(f"{longest} ".encode())
            kept = np.ascontiguousarray(array[:, :longest])
            digest.update(kept.tobytes())
        digest.update(self.references)
        return digest.hexdigest()

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """Which rows a batch of `chosen` takes: those."""
        return chosen

    def batch(self, chosen: np.ndarray) -> Batch:
        """The batch of `chosen` [B]; there are no segments."""
        inputs = self.inputs[chosen]
        return Batch(inputs, np.zeros_like(inputs), self.targets[chosen])

    def widened(self, width: int) -> "TextExamples":
        """The same rows, their inputs padded to `width` tokens."""
        room = width - self.inputs.shape[1]
        inputs = np.pad(self.inputs, ((0, 0), (0, room)))
        return dataclasses.replace(self, inputs=inputs)

    def subset(self, questions: Sequence[int]) -> "TextExamples":
        """These rows alone, in this order."""
        kept = [self.parsed_references[q] for q in questions]
        return TextExamples(
            _cut(self.inputs[list(questions)]),
            self.targets[list(questions)],
            json.dumps(kept).encode(),
            None if self.cut is None else self.cut[list(questions)],
        )


AnyExamples = Examples | TextExamples


def from_features(
    kind: str, features: Mapping[str, np.ndarray], width: int | None = None
) -> Examples:
    """Examples from the columns of the encoder's feature converter.

    Args:
      kind: of the task.
      features: `encoder_input_tokens` [R, T], `labels`, `reference` [R] bytes
        (empty but on a question's first row), ...
      width: T to cut to; None to keep it.
    """
    kept = slice(width)
    labels = features["labels"]
    if kind == "tags":
        labels = labels[:, kept] - 1
    spans = {
        name: features[name][:, kept]
        for name in ("char_starts", "char_ends")
        if name in features
    }
    # Rows that SeqIO's sources leave out never leave gaps in the numbering.
    _, question = np.unique(features["question"], return_inverse=True)
    references = [text for text in features["reference"] if text]
    return Examples(
        kind=kind,
        tokens=features["encoder_input_tokens"][:, kept],
        segments=features["encoder_segment_ids"][:, kept],
        labels=labels,
        question=question.astype(np.int32),
        references=b"[" + b",".join(references) + b"]",
        cut=features["cut"] > 0 if "cut" in features else None,
        **spans,
    )


def _cut(tokens: np.ndarray) -> np.ndarray:
    """[B, T] as wide as the longest row, up to a multiple of 8."""
    return tokens[:, : -(-longest_row(tokens) // 8) * 8]


def longest_row(tokens: np.ndarray) -> int:
    """Tokens of the longest row, padding not counted."""
    return int((tokens != 0).sum(-1).max())
