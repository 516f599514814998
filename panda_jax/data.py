"""Examples as arrays, and the order in which training sees them."""

import dataclasses
import hashlib
import random
from typing import Any

import numpy as np

from panda_jax import files, token_cache
from panda_jax.errors import UserError
from panda_jax.tasks import sources, specs
from panda_jax.tasks.spec import SPLITS, TaskSpec
from panda_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Examples:
    """A split as arrays.

    Attributes:
      tokens: [E, T] int32 ids, `[CLS] a [SEP] b [SEP]`, 0-padded.
      segments: [E, T] int32, 1 on the second text and its `[SEP]`, else 0.
      labels: [E] int32 class ids, or [E] float32 for regression.
      fingerprint: sha256 of the rows and their order, independent of T.
    """

    tokens: np.ndarray
    segments: np.ndarray
    labels: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)


def load_examples(
    task: str,
    split: str,
    *,
    tokenizer: Tokenizer,
    max_length: int = 128,
    length: int | None = None,
    data_dir: files.PathLike | None = None,
    tfds_data_dir: files.PathLike | None = None,
    cache_dir: files.PathLike | None = None,
    limit: int | None = None,
) -> Examples:
    """A split of a task, tokenized.

    Args:
      task: the task id.
      split: `"train"` or `"validation"`.
      tokenizer: the backbone's.
      max_length: most tokens of a row; longer pairs are cut longest first.
      length: T; default the longest row of the split rounded up to a
        multiple of 8, at most `max_length`.
      data_dir: folder of distribution files, default `PANDA_DATA_DIR`;
        without one the task comes from TFDS in `tfds_data_dir`.
      tfds_data_dir: TFDS's folder.
      cache_dir: default `PANDA_CACHE_DIR`, else `panda_jax` in the user's
        cache folder.
      limit: only so many rows: the first of a fixed shuffle that keeps the
        proportions of the labels, the same for every training seed.

    Raises:
      UserError: unknown task or split, missing or malformed data, or a
        length that cannot be.
    """
    spec = specs.get(task)
    sources.known(split)
    least = 5 if spec.text_b else 3
    if max_length < least:
        raise UserError(
            f"max_length is {max_length}; task {task!r} needs {least} or more: "
            "[CLS], [SEP] and a piece of each text."
        )
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, expected 1 or more rows.")
    tokens, segments, labels = token_cache.load(
        spec,
        split,
        tokenizer=tokenizer,
        max_length=max_length,
        data_dir=data_dir,
        tfds_data_dir=tfds_data_dir,
        cache_dir=cache_dir,
    )
    if length is not None:
        _check_length(tokens, length, task=task, split=split)
        tokens, segments = _resized(tokens, length), _resized(segments, length)
    if limit is not None and limit < len(labels):
        chosen = _stratified(labels)[:limit]
        tokens, segments, labels = (
            array[chosen] for array in (tokens, segments, labels)
        )
    return Examples(
        tokens=tokens,
        segments=segments,
        labels=labels,
        fingerprint=_fingerprint(tokens, segments, labels),
    )


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


def list_tasks() -> list[dict[str, Any]]:
    """One dict a task: name, kind, classes, metric, target, offline, text."""
    return [
        {
            "name": spec.name,
            "kind": spec.kind,
            "outputs": spec.outputs,
            "metric": spec.metric,
            "target": spec.target,
            "offline": spec.offline,
            "description": spec.description,
        }
        for spec in map(specs.get, specs.names())
    ]


def describe(
    task: str,
    *,
    tokenizer: Tokenizer,
    max_length: int = 128,
    data_dir: files.PathLike | None = None,
    tfds_data_dir: files.PathLike | None = None,
    cache_dir: files.PathLike | None = None,
) -> dict[str, Any]:
    """What a task is and holds, as plain values for printing or JSON.

    Returns:
      name, kind, description, target, metrics, labels, source (where the rows
      come from), texts (the templates), features (name -> shape and dtype),
      and splits: split -> {examples, longest (tokens), labels (name ->
      count) or scores (lowest, mean, highest)}; examples: three rows of the
      train split as {tokens (decoded), label}.  Where the rows cannot be had
      without a download, `unavailable` says so instead of the last two.

    Raises:
      UserError: no such task, or its data folder is missing or malformed.
    """
    spec = specs.get(task)
    source = sources.find(spec, data_dir=data_dir, tfds_data_dir=tfds_data_dir)
    number = "float32" if spec.kind == "regression" else "int32"
    about: dict[str, Any] = {
        "name": spec.name,
        "kind": spec.kind,
        "description": spec.description,
        "target": spec.target,
        "metrics": list(spec.metrics),
        "labels": list(spec.labels),
        "source": str(source),
        "texts": [text for text in (spec.text_a, spec.text_b) if text],
        "features": {
            "encoder_input_tokens": f"[{max_length}] int32",
            "encoder_segment_ids": f"[{max_length}] int32",
            "labels": f"[] {number}",
        },
    }
    if source.fingerprint("train") is None:
        about["unavailable"] = (
            f"Not prepared: {source}. Give the data set's own files by "
            "--data_dir (or PANDA_DATA_DIR); training would download it."
        )
        return about
    about["splits"], about["examples"] = {}, []
    for split in SPLITS:
        loaded = load_examples(
            task,
            split,
            tokenizer=tokenizer,
            max_length=max_length,
            data_dir=data_dir,
            tfds_data_dir=tfds_data_dir,
            cache_dir=cache_dir,
        )
        about["splits"][split] = _summary(spec, loaded)
        about["examples"] = about["examples"] or [
            {
                "tokens": tokenizer.decode(loaded.tokens[i]),
                "label": spec.labels[loaded.labels[i]]
                if spec.labels
                else float(loaded.labels[i]),
            }
            for i in range(min(3, len(loaded)))
        ]
    return about


def _summary(spec: TaskSpec, loaded: Examples) -> dict[str, Any]:
    labels = loaded.labels
    summary: dict[str, Any] = {
        "examples": len(loaded),
        "longest": _longest(loaded.tokens),
    }
    if spec.labels:
        counts = np.bincount(labels, minlength=spec.outputs)
        summary["labels"] = {
            name: int(n) for name, n in zip(spec.labels, counts, strict=True)
        }
    else:
        values = (labels.min(), labels.mean(), labels.max())
        summary["scores"] = [round(float(value), 3) for value in values]
    return summary


def _longest(tokens: np.ndarray) -> int:
    return int((tokens != 0).sum(-1).max())


def _check_length(
    tokens: np.ndarray, length: int, *, task: str, split: str
) -> None:
    longest = _longest(tokens)
    if longest > length:
        raise UserError(
            f"Length {length} is asked for, but {task} {split} has rows of "
            f"{longest} tokens. Ask for {longest} or more, or give "
            f"max_length={length} to cut the texts."
        )


def _resized(array: np.ndarray, length: int) -> np.ndarray:
    """[E, T] with T cut or zero-padded to `length`."""
    kept = array[:, :length]
    return np.pad(kept, ((0, 0), (0, length - kept.shape[1])))


def _stratified(labels: np.ndarray) -> np.ndarray:
    """A fixed order of the rows of which every prefix has all labels' shares.

    Scores (float labels) have no classes: their order is a plain shuffle.
    """
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        one = 0 if labels.dtype.kind == "f" else int(label)
        groups.setdefault(one, []).append(i)
    ranked = []
    for label, rows in sorted(groups.items()):
        # Python's generator, unlike NumPy's, promises a stable stream.
        random.Random(f"limit/{label}").shuffle(rows)
        ranked += [
            ((rank + 0.5) / len(rows), label, i) for rank, i in enumerate(rows)
        ]
    return np.array([i for _, _, i in sorted(ranked)])


def _fingerprint(
    tokens: np.ndarray, segments: np.ndarray, labels: np.ndarray
) -> str:
    """sha256 of the rows in their order; padding past the longest is left
    out, so it does not depend on T."""
    longest = _longest(tokens)
    digest = hashlib.sha256(f"{len(labels)} {longest} {labels.dtype}".encode())
    for array in (tokens[:, :longest], segments[:, :longest], labels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
