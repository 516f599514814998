"""Examples as arrays, and the order in which training sees them."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from panda_jax.data import token_cache
from panda_jax.data.examples import AnyExamples, Examples, TextExamples
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import UserError
from panda_jax.io import files
from panda_jax.tasks import encoding, sources, specs
from panda_jax.tasks.spec import TaskSpec

# Of the training rows, which held-out ones are taken from.
_HELD_OUT = 0.2
_MOST_HELD_OUT = 2000


def load_examples(
    task: str,
    split: str,
    *,
    tokenizer: Tokenizer,
    max_length: int = 128,
    data_dir: files.PathLike | None = None,
    tfds_data_dir: files.PathLike | None = None,
    cache_dir: files.PathLike | None = None,
    limit: int | None = None,
) -> Examples:
    """A split of a task, tokenized for an encoder.

    T is the longest row of the split rounded up to a multiple of 8, at most
    `max_length`.

    Args:
      task: the task id.
      split: `"train"`, `"validation"` or `"test"`.
      tokenizer: the backbone's.
      max_length: most tokens of a row; longer pairs are cut longest first,
        contexts of kind span are read in windows.
      data_dir: folder of distribution files, default `PANDA_DATA_DIR`;
        without one the task comes from TFDS in `tfds_data_dir`.
      tfds_data_dir: TFDS's folder.
      cache_dir: default `PANDA_CACHE_DIR`, else `panda_jax` in the user's
        cache folder.
      limit: only so many questions: the first of a fixed shuffle that keeps
        the proportions of the labels, the same for every training seed. Where
        rows make groups (MultiRC's questions), whole groups that hold at most
        so many rows.

    Raises:
      UserError: unknown task or split, missing or malformed data, or a
        length that cannot be.
    """
    spec = specs.get(task)
    sources.known(split)
    encoding.check_length(spec, max_length)
    _check_limit(limit)
    examples = token_cache.load(
        spec,
        split,
        tokenizer=tokenizer,
        max_length=max_length,
        data_dir=data_dir,
        tfds_data_dir=tfds_data_dir,
        cache_dir=cache_dir,
    )
    if limit is None or limit >= examples.questions:
        return examples
    return examples.subset(_chosen(spec, examples.parsed_references, limit))


def load_text_examples(
    task: str,
    split: str,
    *,
    tokenizer: TextTokenizer,
    input_length: int = 512,
    target_length: int | None = None,
    data_dir: files.PathLike | None = None,
    tfds_data_dir: files.PathLike | None = None,
    cache_dir: files.PathLike | None = None,
    limit: int | None = None,
) -> TextExamples:
    """A split of a task from text to text; else as `load_examples`.

    Args:
      task: the task id.
      split: `"train"`, `"validation"` or `"test"`.
      tokenizer: the backbone's.
      input_length: most ids of an input, the end's included; the rest is cut.
      target_length: likewise of a target; None for 256 of kind tags, whose
        targets name every span, else 62.
      data_dir: as in `load_examples`, and so are the others.
      tfds_data_dir: likewise.
      cache_dir: likewise.
      limit: likewise.
    """
    spec = specs.get(task)
    sources.known(split)
    if target_length is None:
        target_length = 256 if spec.kind == "tags" else 62
    for name, length in (("input", input_length), ("target", target_length)):
        if length < 2:
            raise UserError(
                f"{name}_length is {length}, expected 2 or more: a piece of "
                "text and the end."
            )
    _check_limit(limit)
    examples = token_cache.load_text(
        spec,
        split,
        tokenizer=tokenizer,
        input_length=input_length,
        target_length=target_length,
        data_dir=data_dir,
        tfds_data_dir=tfds_data_dir,
        cache_dir=cache_dir,
    )
    if limit is None or limit >= len(examples):
        return examples
    return examples.subset(_chosen(spec, examples.parsed_references, limit))


def held_out(
    spec: TaskSpec, rows: AnyExamples
) -> tuple[AnyExamples, AnyExamples]:
    """Training rows in two: what is left to learn from, and held-out ones.

    A fifth is held out, 2,000 questions at most, labels in their proportions
    and groups whole; the same ones for every training seed.

    Args:
      spec: the task.
      rows: its training rows, or those of them that a run may use.

    Raises:
      UserError: there are not enough rows (or groups) for two parts.
    """
    count = min(round(rows.questions * _HELD_OUT), _MOST_HELD_OUT)
    references = rows.parsed_references
    # Another draw than that of few-shot subsets, which these rows may be.
    held = _chosen(spec, references, max(count, 1), draw="held out")
    kept = sorted(set(range(rows.questions)) - set(held))
    if not kept:
        raise UserError(
            f"select_on=held_out takes a fifth of the training rows of task "
            f"{spec.name!r}, and {rows.questions} rows do not make two parts: "
            "give more rows, or --select_on=validation."
        )
    return rows.subset(kept), rows.subset(held)


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, expected 1 or more rows.")


def batch_indices(
    examples: int, batch_size: int, *, seed: int, epoch: int
) -> np.ndarray:
    """Which rows make up each batch of an epoch.

    Args:
      examples: E, rows of the split.
      batch_size: B.
      seed: the run's data seed; with `epoch` it decides the order alone, so
        a resumed run sees the same batches.
      epoch: from 0.

    Returns:
      [steps, B] int32: a permutation of the rows; a last short batch is
      dropped, except when it is the only one: then its rows repeat.

    Raises:
      UserError: there is no row or the batch size is not positive.
    """
    if examples < 1 or batch_size < 1:
        raise UserError(
            f"Got {examples} examples and batch size {batch_size}, expected "
            "at least 1 of each."
        )
    rng = np.random.default_rng((seed % 2**64, epoch))
    order = rng.permutation(examples).astype(np.int32)
    steps = max(1, examples // batch_size)
    return np.resize(order, (steps, batch_size))


def _chosen(
    spec: TaskSpec,
    references: Sequence[dict[str, Any]],
    limit: int,
    *,
    draw: str = "limit",
) -> list[int]:
    """The questions that `limit` leaves, in an order that `draw` fixes."""
    if not spec.group:
        # Scores have no classes: their order is a plain shuffle.
        labels = [
            0 if spec.kind == "regression" else reference.get("label", 0)
            for reference in references
        ]
        return _stratified(labels, draw)[:limit]
    groups: dict[str, list[int]] = {}
    for i, reference in enumerate(references):
        groups.setdefault(reference[spec.group], []).append(i)
    names = sorted(groups)
    random.Random(draw).shuffle(names)
    chosen = list(groups[names[0]])
    for name in names[1:]:
        if len(chosen) + len(groups[name]) <= limit:
            chosen += groups[name]
    return chosen


def _stratified(labels: Sequence[int], draw: str) -> list[int]:
    """A fixed order; every prefix of it has all labels' shares."""
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(label, []).append(i)
    ranked = []
    for label, rows in sorted(groups.items()):
        # Python's generator, unlike NumPy's, promises a stable stream.
        random.Random(f"{draw}/{label}").shuffle(rows)
        ranked += [
            ((rank + 0.5) / len(rows), label, i) for rank, i in enumerate(rows)
        ]
    return [i for _, _, i in sorted(ranked)]
