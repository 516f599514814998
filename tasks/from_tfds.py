"""Reads a task's rows from TensorFlow Datasets.  Imports TensorFlow."""

# TensorFlow's and SeqIO's own annotations are incomplete or too narrow.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOptionalSubscript=false

import pathlib
import socket
import urllib.parse
import urllib.request
from typing import Any

import tensorflow_datasets as tfds
from panda_jax.tasks.readers import Place, Row, checked
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
      split: `"train"` or `"validation"`.
      folder: TFDS's data folder.
      prepared: the folder of a prepared version in it, None without one.

    Raises:
      UserError: TFDS cannot deliver it, or its rows are not the task's.
    """
    if not spec.tfds:
        raise UserError(
            f"Task {spec.name!r} is not in TFDS: give its files by --data_dir "
            "(or PANDA_DATA_DIR)."
        )
    try:
        dataset, classes = _open(spec, split, folder, prepared)
    except Exception as error:  # TFDS raises whatever its parts raise
        raise UserError(
            f"TFDS could not deliver {spec.tfds!r} "
            f"({type(error).__name__}: {error}). Give the data set's own "
            "files by --data_dir (or PANDA_DATA_DIR), or the folder of a "
            "prepared TFDS copy by --tfds_data_dir, or take a built-in task "
            "such as toy_sentiment."
        ) from None
    rows = []
    for number, raw in enumerate(dataset):
        place = Place(f"TFDS {spec.tfds} {split}", number, unit="row")
        fields = {key: _plain(value) for key, value in raw.items()}
        if classes and 0 <= fields.get("label", -1) < len(classes):
            fields["label"] = classes[fields["label"]]
        # TFDS gives class names, so the files' codes do not apply.
        rows.append(checked(spec, place, fields, coded=False))
    return rows


def _open(
    spec: TaskSpec, split: str, folder: str, prepared: pathlib.Path | None
) -> tuple[Any, list[str]]:
    if prepared is None:
        builder = tfds.builder(spec.tfds, data_dir=folder)
        _check_network(builder)
        builder.download_and_prepare()
    else:
        builder = tfds.builder_from_directory(prepared)
    label = builder.info.features["label"]
    classes = (
        list(label.names) if isinstance(label, tfds.features.ClassLabel) else []
    )
    return tfds.as_numpy(builder.as_dataset(split=split)), classes


def _check_network(builder: tfds.core.DatasetBuilder) -> None:
    """Fails at once without a network; TFDS would try again for minutes."""
    hosts = {
        urllib.parse.urlsplit(url).hostname for url in builder.url_infos or ()
    }
    if not hosts or urllib.request.getproxies():
        return
    for host in hosts:
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            continue
        return
    raise ConnectionError(f"no address found for {', '.join(sorted(hosts))}")


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value.item()
