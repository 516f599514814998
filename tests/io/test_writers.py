import json
import math
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from panda_jax import errors
from panda_jax.io import writers


def _events(folder: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def _strict(text: str) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = text.splitlines()
    return [json.loads(x, parse_constant=refuse) for x in lines]


def test_writes_json_lines_and_events(tmp_path):
    with writers.MetricWriter(tmp_path) as writer:
        writer.write(1, loss=0.5, split="train", count=np.int64(3))
        text = (tmp_path / "metrics.jsonl").read_text()
        assert text.endswith("\n"), "a line must reach the file at once"
        writer.write(2, loss=jnp.float32(0.25), half=jnp.bfloat16(1.5))
    records = _strict((tmp_path / "metrics.jsonl").read_text())
    assert records == [
        {"step": 1, "loss": 0.5, "split": "train", "count": 3},
        {"step": 2, "loss": 0.25, "half": 1.5},
    ]
    assert writers.read_metrics(tmp_path / "metrics.jsonl") == records
    assert _events(tmp_path) == {
        "loss": [(1, 0.5), (2, 0.25)],
        "count": [(1, 3.0)],
        "half": [(2, 1.5)],
    }


def test_nonfinite_values_are_named(tmp_path):
    with writers.MetricWriter(tmp_path) as writer:
        writer.write(1, loss=math.nan, norm=jnp.inf, accuracy=0.5)
    (record,) = _strict((tmp_path / "metrics.jsonl").read_text())
    assert record == {
        "step": 1,
        "loss": None,
        "norm": None,
        "accuracy": 0.5,
        "nonfinite": ["loss", "norm"],
    }
    assert math.isnan(_events(tmp_path)["loss"][0][1])


def test_resume_equals_uninterrupted(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with writers.MetricWriter(whole) as writer:
        for step in range(6):
            writer.write(step, loss=1 / (step + 1))
    with writers.MetricWriter(killed) as writer:
        for step in range(4):
            writer.write(step, loss=1 / (step + 1))
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with writers.MetricWriter(killed, resume_step=2) as writer:
        for step in range(3, 6):
            writer.write(step, loss=1 / (step + 1))
    assert (killed / "metrics.jsonl").read_bytes() == (
        whole / "metrics.jsonl"
    ).read_bytes()
    assert _events(killed) == _events(whole)


def test_without_resume_step_starts_afresh(tmp_path):
    for loss in (1.0, 2.0):
        with writers.MetricWriter(tmp_path) as writer:
            writer.write(0, loss=loss)
    (record,) = writers.read_metrics(tmp_path / "metrics.jsonl")
    assert record["loss"] == 2.0
    assert _events(tmp_path) == {"loss": [(0, 2.0)]}


@pytest.mark.parametrize("torn", [b'{"step": 2, "a', b"\0\0\0", b"7"])
def test_reader_passes_over_a_torn_last_line_only(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + torn)
    assert writers.read_metrics(path) == [{"step": 1}]
    path.write_bytes(torn + b'\n{"step": 1}\n')
    with pytest.raises(errors.UserError, match=r"metrics\.jsonl:1: "):
        writers.read_metrics(path)


@pytest.mark.parametrize("value", [np.zeros(3), None, [1.0, 2.0]])
def test_refuses_what_is_no_scalar(tmp_path, value):
    with (
        writers.MetricWriter(tmp_path) as writer,
        pytest.raises(ValueError, match="'loss' is of shape"),
    ):
        writer.write(1, loss=value)
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_a_file_that_no_run_wrote_is_not_begun_anew(tmp_path):
    path = tmp_path / writers.FILE_NAME
    path.write_text("my notes\n")
    with pytest.raises(errors.UserError, match="Move that file away"):
        writers.MetricWriter(tmp_path)
    assert path.read_text() == "my notes\n"


def test_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(errors.UserError, match="cannot be read"):
        writers.read_metrics(tmp_path / "none.jsonl")


def test_does_not_load_tensorflow(tmp_path):
    code = (
        "import sys\n"
        "from panda_jax.io import writers\n"
        "with writers.MetricWriter(sys.argv[1]) as w: w.write(1, loss=1.0)\n"
        "bad = {m.split('.')[0] for m in sys.modules}\n"
        "assert not bad & {'tensorflow', 'seqio'}, bad\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "metrics.jsonl").exists()
