"""Rows -> examples without SeqIO: of the user's own rows, and of `predict`.

The same arrays as by way of SeqIO (a test holds every kind of task to it), and
no TensorFlow, which who brings rows of their own need not install.
"""

import itertools
import json
from collections.abc import Sequence

import numpy as np

from panda_jax.data.examples import Examples, TextExamples
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.tasks import encoding, views
from panda_jax.tasks.rows import Row
from panda_jax.tasks.spec import TaskSpec


def examples(
    spec: TaskSpec,
    rows: Sequence[Row],
    *,
    tokenizer: Tokenizer,
    max_length: int,
) -> Examples:
    """Rows as an encoder reads them; T is the longest.

    Args:
      spec: the task.
      rows: checked.
      tokenizer: the backbone's.
      max_length: most tokens of a row.

    Raises:
      UserError: a length that leaves no room for the texts.
    """
    encoding.check_length(spec, max_length)
    groups = encoding.encode(
        spec, rows, tokenizer=tokenizer, max_length=max_length
    )
    flat = list(itertools.chain.from_iterable(groups))
    number = np.float32 if spec.kind == "regression" else np.int32
    labels = _padded([each.labels for each in flat], number)
    places = {}
    if spec.kind == "tags":
        labels = labels - 1
    elif spec.kind == "span":
        places = {
            "char_starts": _padded([each.starts for each in flat]),
            "char_ends": _padded([each.ends for each in flat]),
        }
    else:
        labels = labels[:, 0]
    return Examples(
        kind=spec.kind,
        tokens=_padded([each.tokens for each in flat]),
        segments=_padded([each.segments for each in flat]),
        labels=labels,
        question=np.repeat(
            np.arange(len(rows), dtype=np.int32), [len(x) for x in groups]
        ),
        references=_references(spec, rows),
        cut=np.array([each.cut for each in flat]),
        **places,
    )


def text_examples(
    spec: TaskSpec,
    rows: Sequence[Row],
    *,
    tokenizer: TextTokenizer,
    input_length: int,
    target_length: int,
    answered: bool = True,
) -> TextExamples:
    """Rows from text to text; T and U are the longest.

    Args:
      spec: the task.
      rows: checked.
      tokenizer: the backbone's.
      input_length: most ids of an input, the end's included.
      target_length: likewise of a target.
      answered: whether the rows have answers; without, targets are empty and
        `target_length` long, for as much to be written.
    """
    texts = [views.text_example(spec, row) for row in rows]
    inputs, cut = _ended(tokenizer, [a for a, _ in texts], input_length)
    targets = np.zeros((len(rows), target_length), np.int32)
    if answered:
        targets, late = _ended(tokenizer, [b for _, b in texts], target_length)
        cut |= late
    return TextExamples(inputs, targets, _references(spec, rows), cut)


def _references(spec: TaskSpec, rows: Sequence[Row]) -> bytes:
    """What answers are judged by, as SeqIO's way writes it."""
    written = (json.dumps(views.reference(spec, row)) for row in rows)
    return f"[{','.join(written)}]".encode()


def _ended(
    tokenizer: TextTokenizer, texts: Sequence[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids [E, T], each row with its end, and which were cut for it."""
    ids = tokenizer.encode(texts)
    cut = np.array([len(each) >= length for each in ids])
    kept = [[*each[: length - 1], tokenizer.eos_id] for each in ids]
    return _padded(kept), cut


def _padded(
    lists: Sequence[Sequence[float]], number: type = np.int32
) -> np.ndarray:
    """[R, T]; T the longest, the others filled with 0."""
    longest = max(len(each) for each in lists)
    found = np.zeros((len(lists), longest), number)
    for row, each in zip(found, lists, strict=True):
        row[: len(each)] = each
    return found
