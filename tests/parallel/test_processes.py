"""Training over several real processes, and processes that are killed."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import panda_jax as pj
from panda_jax.io.writers import read_metrics

SETTINGS = [
    "--task=toy_review",
    "--backbone=random:bert-tiny",
    "--prompt_length=4",
    "--max_length=16",
    "--train_examples=40",
    "--eval_examples=16",
    "--batch_size=8",
    "--eval_every=3",
    # One device draws other masks, for its rows are packed.
    "--dropout=0",
]


def start(folder, *flags, devices=1):
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
        f"--xla_force_host_platform_device_count={devices}"
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "panda_jax",
            "train",
            *SETTINGS,
            f"--model_dir={folder}",
            *flags,
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pair(folder, *flags):
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port = made.getsockname()[1]
    return [
        start(
            folder,
            f"--coordinator_address=127.0.0.1:{port}",
            "--process_count=2",
            f"--process_index={index}",
            *flags,
            devices=2,
        )
        for index in range(2)
    ]


def ended(process, seconds=240):
    out, error = process.communicate(timeout=seconds)
    return process.returncode, out, error


def same_result(one, other, **tolerance):
    """Result files, prompts and metrics of two run folders."""
    results = [
        json.loads((x / "result.json").read_text()) for x in (one, other)
    ]
    for key in ("best", "first_epoch", "final", "steps", "parameters"):
        assert results[0][key] == results[1][key], key
    prompts = [pj.load_prompt(x).prompt for x in (one, other)]
    np.testing.assert_allclose(
        prompts[0].vectors, prompts[1].vectors, **tolerance
    )
    lines = [
        [(x["step"], x["loss"]) for x in read_metrics(f) if "loss" in x]
        for f in (one / "metrics.jsonl", other / "metrics.jsonl")
    ]
    np.testing.assert_allclose(lines[0], lines[1], **tolerance)


def until(folder, step, processes, seconds=240):
    """Waits until the metrics of a step are on disk."""
    deadline = time.monotonic() + seconds
    path = folder / "metrics.jsonl"
    while time.monotonic() < deadline:
        if path.exists():
            records = read_metrics(path)
            if any(x["step"] >= step for x in records):
                return
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no such step in time")


KILLS = int(os.environ.get("PANDA_TEST_KILLS", "2"))
LONG = f"--epochs={max(40, 20 * KILLS)}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run folder of one process that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, _, error = ended(start(folder, LONG))
    assert status == 0, error
    return folder


def test_two_processes_train_as_one_and_go_on_after_a_kill(whole, tmp_path):
    run, four = tmp_path / "run", tmp_path / "four"
    one = start(four, LONG, "--num_partitions=1", devices=4)
    both = pair(run, LONG)
    until(run, 30, both)
    both[1].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    status, _, error = ended(both[0])
    assert time.monotonic() - begun < 60
    assert status not in (0, 2), error
    assert "process" in error.lower()
    both[1].communicate()
    assert not (run / "result.json").exists()
    for process in pair(run, LONG):
        status, _, error = ended(process)
        assert status == 0, error
        assert "resumed at step" in error
    status, _, error = ended(one)
    assert status == 0, error
    # One process with as many devices, and with one.
    same_result(run, four, rtol=1e-5, atol=1e-5)
    same_result(run, whole, rtol=1e-3, atol=1e-3)


def test_killed_at_random_moments_the_result_is_the_same(whole, tmp_path):
    """`PANDA_TEST_KILLS=20` kills as often."""
    run, moments, kills = tmp_path / "run", random.Random(0), 0
    while kills < KILLS:
        process = start(run, LONG)
        assert process.stderr is not None
        # From the first step on: checkpoints are written all the time.
        for line in process.stderr:
            if "first " in line:
                break
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"ended after {kills}"
        kills += 1
    status, _, error = ended(start(run, LONG))
    assert status == 0, error
    same_result(run, whole, rtol=0, atol=0)


def test_ended_by_sigterm_a_run_goes_on_on_other_devices(whole, tmp_path):
    run = tmp_path / "run"
    for devices, step in ((8, 20), (1, 60), (8, None)):
        shape = [] if devices == 1 else [f"--mesh_shape=1,{devices},1"]
        process = start(run, LONG, *shape, devices=devices)
        if step is not None:
            until(run, step, [process])
            process.send_signal(signal.SIGTERM)
        status, _, error = ended(process)
        assert status == (0 if step is None else 143), error
        assert ("resumed at step" in error) == (step != 20)
        if step is not None:
            assert "the same command goes on from there" in error
            assert not (run / "result.json").exists()
    same_result(run, whole, rtol=1e-3, atol=1e-3)
