"""Rows -> what an encoder reads: word pieces, segments, labels.

In plain Python, for `tasks.features` to run inside SeqIO.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from panda_jax.tasks import views
from panda_jax.tasks.rows import Row
from panda_jax.tasks.spec import TaskSpec

from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import UserError

# As in BERT's own SQuAD code: no question takes more pieces than this.
_LONGEST_QUESTION = 64


class Encoded(NamedTuple):
    """One row of tokens; a question may have several.

    Attributes:
      tokens: `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`.
      segments: as long; 1 from the second text on.
      labels: a class id, a score, or 1 or 0 for a candidate: one number; of
        kind span the first and last position of the answer (0, 0 where this
        window lacks it); of kind tags one number a token, the tag's id + 1 on
        the first piece of a word and 0 elsewhere (so that padding is 0).
      starts: of kind span, one number a token: 1 + where it begins in the
        context's characters, 0 where it is not of the context.
      ends: likewise, 1 + where it ends (exclusive).
      cut: whether `max_length` left out a part of what it says.
    """

    tokens: list[int]
    segments: list[int]
    labels: Sequence[float]
    starts: list[int]
    ends: list[int]
    cut: bool = False


def check_length(spec: TaskSpec, max_length: int) -> None:
    """Refuses a length that leaves no room for a piece of each text.

    Raises:
      UserError: says how much is needed.
    """
    least = 5 if spec.text_b else 3
    if max_length < least:
        raise UserError(
            f"max_length is {max_length}; task {spec.name!r} needs {least} or "
            "more: [CLS], [SEP] and a piece of each text."
        )


def encode(
    spec: TaskSpec,
    rows: Sequence[Row],
    *,
    tokenizer: Tokenizer,
    max_length: int,
) -> list[list[Encoded]]:
    """The token rows of each of `rows`.

    One, except that kind choice has one a candidate, and kind span one a
    window of the context.

    Args:
      spec: the task.
      rows: as `tasks.spec` says.
      tokenizer: the backbone's.
      max_length: most tokens of a row; pairs of texts are cut longest first,
        sentences with tags at their end, and contexts are read in windows.
    """
    encoders = {"tags": _tags, "span": _spans}
    return list(
        encoders.get(spec.kind, _texts)(spec, rows, tokenizer, max_length)
    )


def _texts(
    spec: TaskSpec, rows: Sequence[Row], tokenizer: Tokenizer, max_length: int
) -> Iterator[list[Encoded]]:
    texts = [views.encoder_texts(spec, row) for row in rows]
    flat = [
        text
        for pairs in texts
        for pair in pairs
        for text in pair
        if text is not None
    ]
    ids = iter(tokenizer.encode(flat))
    for row, pairs in zip(rows, texts, strict=True):
        if spec.kind == "choice":
            labels = views.right_candidates(spec, row)
        else:
            labels = [row["label"]]
        found = []
        for (_, b), label in zip(pairs, labels, strict=True):
            first = next(ids)
            second = None if b is None else next(ids)
            tokens, segments = tokenizer.pair(first, second, max_length)
            said = len(first) + len(second or ())
            whole = len(tokens) == said + (2 if b is None else 3)
            found.append(
                Encoded(tokens, segments, [label], [], [], cut=not whole)
            )
        yield found


def _tags(
    spec: TaskSpec, rows: Sequence[Row], tokenizer: Tokenizer, max_length: int
) -> Iterator[list[Encoded]]:
    flat = tokenizer.encode([word for row in rows for word in row["words"]])
    begin = 0
    for row in rows:
        size = len(row["words"])
        # A word of which the tokenizer leaves nothing still holds its tag.
        words = [
            ids or [tokenizer.unk_id] for ids in flat[begin : begin + size]
        ]
        begin += size
        second = None
        if spec.has_predicate:
            # As in P-tuning v2: the predicate again, as a second text.
            second = words[row["predicate"]][: (max_length - 3) // 2]
        room = max_length - 2 - (len(second) + 1 if second else 0)
        pieces, labels = [], []
        for ids, tag in zip(words, row["tags"], strict=True):
            pieces += ids
            labels += [tag + 1] + [0] * (len(ids) - 1)
        tokens = [tokenizer.cls_id, *pieces[:room], tokenizer.sep_id]
        labels = [0, *labels[:room], 0]
        segments = [0] * len(tokens)
        if second:
            tail = [*second, tokenizer.sep_id]
            tokens, labels = tokens + tail, labels + [0] * len(tail)
            segments += [1] * len(tail)
        cut = len(pieces) > room
        yield [Encoded(tokens, segments, labels, [], [], cut)]


def _spans(
    spec: TaskSpec, rows: Sequence[Row], tokenizer: Tokenizer, max_length: int
) -> Iterator[list[Encoded]]:
    del spec
    questions = tokenizer.encode([row["question"] for row in rows])
    contexts = tokenizer.encode_with_offsets([row["context"] for row in rows])
    for row, question, (ids, starts, ends) in zip(
        rows, questions, contexts, strict=True
    ):
        longest = min(_LONGEST_QUESTION, (max_length - 3) // 2)
        head = [tokenizer.cls_id, *question[:longest], tokenizer.sep_id]
        room = max_length - len(head) - 1
        first, last = _position(row, starts, ends)
        windows = []
        for at in _windows(len(ids), room):
            part = slice(at, at + room)
            tokens = [*head, *ids[part], tokenizer.sep_id]
            size, before = len(ids[part]), [0] * len(head)
            labels = [0, 0]
            if first >= at and last < at + size:
                labels = [len(head) + x - at for x in (first, last)]
            windows.append(
                Encoded(
                    tokens,
                    [0] * len(head) + [1] * (size + 1),
                    labels,
                    [*before, *(x + 1 for x in starts[part]), 0],
                    [*before, *(x + 1 for x in ends[part]), 0],
                    # A context is read whole, window by window.
                    cut=len(question) > longest,
                )
            )
        yield windows


def _windows(total: int, room: int) -> list[int]:
    """Where the windows over `total` pieces begin; each half overlaps."""
    step = max(room // 2, 1)
    return [0, *range(step, total - room + step, step)]


def _position(
    row: Row, starts: Sequence[int], ends: Sequence[int]
) -> tuple[int, int]:
    """The first and the last piece of the first answer; (-1, -1) for none."""
    begin = row["starts"][0]
    end = begin + len(row["answers"][0])
    inside = [
        i
        for i, (start, stop) in enumerate(zip(starts, ends, strict=True))
        if start < end and stop > begin
    ]
    return (inside[0], inside[-1]) if inside else (-1, -1)
