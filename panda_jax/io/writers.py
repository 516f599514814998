"""Metrics of a run: one JSON object a line, and TensorBoard event files.

The event files are written from TensorBoard's own protocol buffers and record
framing; its `EventFileWriter` would import TensorFlow when it is installed.
"""

# Protocol buffers make their classes when they are imported.
# pyright: reportAttributeAccessIssue=false

import json
import math
import pathlib
import socket
import time
from typing import Any

import jax
import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from panda_jax.errors import UserError
from panda_jax.io.files import PathLike, parse_json, write_text

FILE_NAME = "metrics.jsonl"
NONFINITE = "nonfinite"


class MetricWriter:
    """Appends metrics to a folder; a context manager.

    `metrics.jsonl` holds one strict JSON object a call of `write`.  NaN and
    infinities, which JSON lacks, become null and their names are listed under
    `"nonfinite"`.  Only process 0 of a multi-host run writes anything.

    Args:
      folder: the run's folder; made when absent.
      resume_step: the step of the checkpoint that the run resumes from.  What
        was written for later steps is dropped, so that the resumed run leaves
        the file that an uninterrupted one would.  None starts afresh and
        drops everything.

    Raises:
      UserError: the existing `metrics.jsonl` is damaged elsewhere than in its
        last line, which a killed process may have left torn.
    """

    def __init__(self, folder: PathLike, *, resume_step: int | None = None):
        self._lines = self._events = None
        if jax.process_index() != 0:
            return
        folder = pathlib.Path(folder)
        path = folder / FILE_NAME
        kept = []
        if resume_step is not None and path.exists():
            kept = [r for r in read_metrics(path) if r["step"] <= resume_step]
        elif path.exists():
            _check_metrics(path)
        write_text(path, "".join(map(_line, kept)))
        self._lines = path.open("a", encoding="utf-8")
        # Nanoseconds: TensorBoard reads the files of a run in name order, and
        # a run may be killed and resumed within a second.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._events = RecordWriter((folder / name).open("wb"))
        self._event(file_version="brain.Event:2", step=0)
        # TensorBoard forgets the steps from here on that it has read so far.
        self._event(
            session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START),
            step=0 if resume_step is None else resume_step + 1,
        )

    def write(self, step: int, **values: Any) -> None:
        """Appends one record and flushes it.

        Args:
          step: optimizer steps done so far.
          **values: numbers (Python, NumPy or JAX scalars) or strings; the
            strings go to `metrics.jsonl` only.
        """
        if self._lines is None or self._events is None:
            return
        record = {k: _plain(k, v) for k, v in values.items()}
        scalars = [
            summary_pb2.Summary.Value(tag=name, simple_value=float(value))
            for name, value in record.items()
            if not isinstance(value, str)
        ]
        self._lines.write(_line({"step": int(step), **record}))
        self._lines.flush()
        self._event(summary=summary_pb2.Summary(value=scalars), step=int(step))

    def _event(self, **fields: Any) -> None:
        assert self._events is not None
        event = event_pb2.Event(wall_time=time.time(), **fields)
        self._events.write(event.SerializeToString())
        self._events.flush()

    def close(self) -> None:
        """Closes both files; further writes do nothing."""
        for file in (self._lines, self._events):
            if file is not None:
                file.close()
        self._lines = self._events = None

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _plain(name: str, value: Any) -> bool | int | float | str:
    """A string as it is; any scalar as the Python number that it holds."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    # bfloat16 and its like are of kind V to NumPy.
    if array.size != 1 or array.dtype.kind not in "biufV":
        raise ValueError(
            f"Metric {name!r} is of shape {array.shape} and type "
            f"{array.dtype}, expected a number or a string."
        )
    if array.dtype.kind == "V":
        array = array.astype(np.float32)
    return array.item()


def _line(record: dict[str, Any]) -> str:
    bad = [
        k
        for k, v in record.items()
        if isinstance(v, float) and not math.isfinite(v)
    ]
    if bad:
        record = record | dict.fromkeys(bad) | {NONFINITE: bad}
    return json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"


def read_metrics(path: PathLike) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in order of writing.

    A last line that a killed process left torn is passed over.

    Raises:
      UserError: the file is missing, or another line is no record.
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"The metrics file {str(path)!r} cannot be read: "
            f"{error.strerror}. Is it the {FILE_NAME} of a run folder?"
        ) from None
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise UserError(
                f"{path}:{number}: got {line[:40]!r}, expected a JSON object "
                "with a step. Remove the line, or run again from the start."
            )
    return records


def _check_metrics(path: pathlib.Path) -> None:
    """Refuses to begin anew over a file that no run has written."""
    with path.open("rb") as file:
        first = file.readline()
    if first.endswith(b"\n") and _parse(first) is None:
        raise UserError(
            f"{path}:1: got {first[:40]!r}, expected a JSON object with a "
            "step, as a run writes them. Move that file away."
        )


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None where there is none."""
    try:
        record = parse_json(line.decode())
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            return None
        _line(record).encode()  # who resumes writes it again
    except ValueError:
        return None
    return record
