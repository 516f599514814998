"""Reads a task's rows from TensorFlow Datasets.  Imports TensorFlow."""

# TensorFlow's and SeqIO's own annotations are incomplete or too narrow.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOptionalSubscript=false

import pathlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from panda_jax.tasks import readers
from panda_jax.tasks.rows import Place, Row, checked
from panda_jax.tasks.spec import TaskSpec

from panda_jax.errors import UserError


def read(
    spec: TaskSpec,
    split: str,
    *,
    folder: str,
    prepared: pathlib.Path | None,
) -> list[Row]:
    """All rows of a split, checked; downloads the data set when it must.

    Args:
      spec: the task.
      split: `"train"`, `"validation"` or `"test"`.
      folder: TFDS's data folder.
      prepared: the folder of a prepared version in it, None without one.

    Raises:
      UserError: TFDS cannot deliver it, or its rows are not the task's.
    """
    if spec.files and split not in spec.files:
        raise readers.no_test(spec)
    rows = []
    name = spec.tfds_splits.get(split, split)
    for number, example in enumerate(_examples(spec, name, folder, prepared)):
        place = Place(f"TFDS {spec.tfds} {name}", number, unit="row")
        raw = _raw(spec, example)
        if spec.kind == "tags" and raw.get("words") == []:
            # TFDS ends each split of conll2003 in a sentence without words.
            continue
        # TFDS gives class names, so the files' codes do not apply.
        rows.append(checked(spec, place, raw, coded=False))
    return rows


def _examples(
    spec: TaskSpec, split: str, folder: str, prepared: pathlib.Path | None
) -> Iterator[dict[str, Any]]:
    """TFDS's own examples in plain Python."""
    try:
        builder = _open(spec, folder, prepared)
        for example in tfds.as_numpy(builder.as_dataset(split=split)):
            yield _plain(example, builder.info.features)
    except Exception as error:  # TFDS raises whatever its parts raise
        raise UserError(
            f"TFDS could not deliver {spec.tfds!r} "
            f"({type(error).__name__}: {error}). Give the data set's own "
            "files by --data_dir (or PANDA_DATA_DIR), or the folder of a "
            "prepared TFDS copy by --tfds_data_dir, or take a built-in task "
            "such as toy_sentiment."
        ) from None


def _open(
    spec: TaskSpec, folder: str, prepared: pathlib.Path | None
) -> tfds.core.DatasetBuilder:
    if prepared is not None:
        return tfds.builder_from_directory(prepared)
    builder = tfds.builder(spec.tfds, data_dir=folder)
    _check_network(builder)
    builder.download_and_prepare()
    return builder


def _check_network(builder: tfds.core.DatasetBuilder) -> None:
    """Fails at once without a network; TFDS would try again for minutes."""
    # TFDS knows no address of conll2003's files, only its home page.
    urls = builder.url_infos or (builder.info.homepage or "",)
    hosts = {urllib.parse.urlsplit(url).hostname for url in urls} - {None}
    if not hosts or urllib.request.getproxies():
        return
    for host in hosts:
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            continue
        return
    raise ConnectionError(f"no address found for {', '.join(sorted(hosts))}")


def _raw(spec: TaskSpec, example: dict[str, Any]) -> dict[str, Any]:
    """The example's values under the names of the row's fields."""
    raw = dict(example)
    for field, feature in spec.tfds_columns.items():
        if feature in example:
            raw[field] = example[feature]
    answers, index = raw.get("answers"), raw.get("idx")
    if spec.kind == "span" and isinstance(answers, dict):
        raw["answers"] = answers.get("text")
        raw["starts"] = answers.get("answer_start")
    if spec.group and isinstance(index, dict):
        # MultiRC counts the questions of each paragraph from 0.
        parts = (index.get("paragraph"), index.get("question"))
        raw.setdefault(spec.group, "-".join(map(str, parts)))
    return raw


def _plain(value: Any, feature: Any) -> Any:
    """`value` in plain Python, with the names of classes for their ids.

    An id that is no class, as TFDS's -1 for no label, stays a number.
    """
    inner = getattr(feature, "feature", feature)  # of a sequence
    if isinstance(value, dict):
        return {key: _plain(part, inner[key]) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(part, inner) for part in value]
    if isinstance(value, bytes):
        return value.decode()
    number = value.item()
    if isinstance(inner, tfds.features.ClassLabel):
        known = 0 <= number < inner.num_classes
        return inner.int2str(number) if known else number
    return number
