"""Several processes: how they meet, and that none outlives another for long."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
import types

import pytest

from panda_jax import cli, fields
from panda_jax.cli import arguments, doctor
from panda_jax.errors import UserError
from panda_jax.parallel import cluster, distributed

# The verb `train` replaced by a loop of collectives, in the real program.
WORKER = """
import sys
from panda_jax import cli
from panda_jax.errors import UserError
from panda_jax.parallel import cluster, distributed

distributed.HEARTBEAT_TIMEOUT = int(sys.argv[1])

def loop(args):
    import jax
    import jax.numpy as jnp
    from jax.experimental import multihost_utils

    here = distributed.initialize(args)
    assert (here.index, here.count) == (args.process_index, 2)
    assert distributed.is_main() == (here.index == 0)
    assert jax.process_count() == 2
    values = multihost_utils.process_allgather(jnp.ones(()) + here.index)
    assert values.sum() == 3, values
    print("met", flush=True)
    if args.task == "end":
        distributed.barrier("end")
        distributed.shutdown()
        return 0
    for number in range(10**6):
        distributed.barrier("again")
        if number > 2 and args.task == "mistake" and here.index == 1:
            raise UserError("The data of process 1 is wrong.")
        if number > 2 and args.task == "unread" and here.index == 1:
            raise BrokenPipeError
        if number > 2 and args.task == "fault" and here.index == 1:
            raise ZeroDivisionError("ours")

cli.VERBS["train"] = lambda args, output: loop(args)
sys.exit(cli.main(["train", *sys.argv[2:]]))
"""


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def start(
    index: int,
    port: int,
    *flags: str,
    task: str = "loop",
    heartbeat: int = 4,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            WORKER,
            str(heartbeat),
            f"--task={task}",
            f"--coordinator_address=127.0.0.1:{port}",
            "--process_count=2",
            f"--process_index={index}",
            *flags,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": "", **(environment or {})},
    )


@pytest.fixture
def pair(request):
    """Two processes in the midst of their collectives (or of `request`)."""
    port = free_port()
    task = getattr(request, "param", "loop")
    both = [start(index, port, task=task) for index in (0, 1)]
    try:
        for one in both:
            assert one.stdout is not None
            lines = iter(one.stdout.readline, "")
            assert any(line == "met\n" for line in lines), one.stderr
        yield both
    finally:
        for one in both:
            one.kill()
            one.communicate()


@pytest.mark.parametrize("pair", ["end"], indirect=True)
def test_two_processes_meet_and_part(pair):
    for one in pair:
        _, error = one.communicate(timeout=60)
        assert one.returncode == 0, error


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(pair, victim):
    time.sleep(0.3)
    pair[victim].kill()
    began = time.monotonic()
    _, error = pair[1 - victim].communicate(timeout=60)
    assert pair[1 - victim].returncode != 0
    print(f"ended {time.monotonic() - began:.1f} s later")
    # Its own words, or, where JAX's C++ was faster, JAX's.
    ours = f"process {1 - victim} of 2 lost another process"
    assert ours in error or "another task died" in error, error


def test_a_silent_process_ends_the_other(pair):
    """As when a machine vanishes: nothing closes its connections."""
    pair[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    _, error = pair[0].communicate(timeout=60)
    assert time.monotonic() - began < 4 * 4
    assert pair[0].returncode != 0
    assert "stopped sending heartbeats" in error


def test_silence_is_death_within_a_minute():
    assert 10 <= distributed.HEARTBEAT_TIMEOUT <= 40


def test_a_terminated_process_ends(pair):
    """JAX's preemption service would ignore the signal."""
    pair[1].terminate()
    pair[1].communicate(timeout=20)
    assert pair[1].returncode == -signal.SIGTERM
    pair[0].communicate(timeout=60)
    assert pair[0].returncode != 0


@pytest.mark.parametrize(
    ("pair", "status", "said"),
    [
        ("mistake", 2, "panda-jax: The data of process 1 is wrong."),
        ("unread", 1, ""),
        ("fault", 1, "ZeroDivisionError: ours\npanda-jax: process 1 of 2 ends"),
    ],
    indirect=["pair"],
)
def test_an_error_in_one_ends_both(pair, status, said):
    _, error = pair[1].communicate(timeout=20)
    assert pair[1].returncode == status
    assert said in error
    pair[0].communicate(timeout=60)
    assert pair[0].returncode != 0


def test_process_0_may_come_last():
    port = free_port()
    late = [start(1, port, task="end")]
    time.sleep(4)
    late.append(start(0, port, task="end"))
    for one in late:
        _, error = one.communicate(timeout=60)
        assert one.returncode == 0, error


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (0, "Process 0 of 2 waited 2 s at 127.0.0.1:{}, and not all others"),
        (1, "Process 1 of 2 could not reach process 0 at 127.0.0.1:{} within"),
    ],
)
def test_waiting_ends_with_the_address_and_a_fix(index, said):
    port = free_port()
    one = start(index, port, "--initialization_timeout=2")
    _, error = one.communicate(timeout=60)
    assert one.returncode == 2
    assert said.format(port) in error
    assert "Check failure" not in error
    assert "Traceback" not in error


def test_a_taken_port_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        one = start(0, taken.getsockname()[1], "--initialization_timeout=30")
        _, error = one.communicate(timeout=60)
    assert one.returncode == 2
    assert "Process 0 cannot listen at 127.0.0.1:" in error


@pytest.fixture
def alone(monkeypatch):
    """No variable of the session's own surroundings."""
    for name in os.environ:
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "OMPI_", "JAX_")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"process_index": 1}, "without --coordinator_address and --process_c"),
        ({"coordinator_address": "a:1"}, "without --process_count and --proce"),
        ({"process_count": 2, "process_index": 0}, "--coordinator_address"),
        ({"coordinator_address": "host"}, "expected HOST:PORT"),
        ({"coordinator_address": ":80"}, "expected HOST:PORT"),
        ({"coordinator_address": "a:70000"}, "expected HOST:PORT"),
        ({"process_count": 0}, "--process_count is 0, expected 1 or more"),
        ({"process_count": 2, "process_index": 2}, "expected 0 to 1"),
        ({"process_index": -1}, "--process_index is -1, expected 0"),
        ({"initialization_timeout": 0}, "--initialization_timeout is 0"),
    ],
)
def test_settings_that_cannot_be_right(alone, settings, said):
    with pytest.raises(UserError) as raised:
        distributed.initialize(cluster.Settings(**settings))
    assert said in str(raised.value)


def test_jax_s_variables_stand_in_for_flags(alone):
    alone.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    alone.setenv("JAX_NUM_PROCESSES", "4")
    alone.setenv("JAX_PROCESS_ID", "3")
    settings = cluster.Settings(process_index=2)
    assert cluster.given(settings, os.environ) == {
        "coordinator_address": "a:1",
        "process_count": 4,
        "process_index": 2,
    }
    alone.setenv("JAX_NUM_PROCESSES", "four")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is 'four'"):
        distributed.initialize(cluster.Settings())


def test_one_process_does_nothing(alone):
    alone.setattr(distributed, "_meet", lambda *unused: pytest.fail("met"))
    for settings in (cluster.Settings(), cluster.Settings(process_count=1)):
        here = distributed.initialize(settings)
        assert here == distributed.Processes(index=0, count=1)
    assert distributed.is_main()
    distributed.barrier("nobody to wait for")
    distributed.leave(1)
    assert distributed.explain(ValueError("Gloo")) is None


STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node[1-2]",
}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({**STEP, "SLURM_NTASKS": "4"}, "SLURM_NTASKS=4"),
        ({**STEP, "SLURM_NTASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_HOSTNAMES=a,b"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "TPU_PROCESS_ADDRESSES=a:1,b:1"),
        ({"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_NUM_SLICES=2"),
        ({"MEGASCALE_NUM_SLICES": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2"),
    ],
)
def test_what_says_that_there_are_others(environment, found):
    assert cluster.several(environment) == found


def test_slurm_is_found_by_jax():
    """One task of two, alone: the address is SLURM's node and JAX's port."""
    environment = {**STEP, "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    environment["SLURM_STEP_NODELIST"] = "localhost"
    code = (
        "import sys; from panda_jax import cli\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", code, "train", "--task=cb"),
            "--initialization_timeout=2",
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "Process 1 of 2 could not reach process 0 at localhost:61447" in (
        done.stderr
    )


def test_others_make_no_other_run(alone, capsys):
    """Neither the default folder nor what is trained depends on them."""
    seen = []

    def train(backbone, **options):
        seen.append(options)
        value = {"value": 0.5, "step": 1}
        result = dict.fromkeys(("best", "first_epoch", "final"), value)
        result |= {"task": "cb", "method": "prompt", "metric": "accuracy"}
        result |= {"seed": 0, "steps": 1, "seconds": 1.0}
        return types.SimpleNamespace(result=result, best=0.5)

    module = types.SimpleNamespace(train=train)
    alone.setitem(sys.modules, "panda_jax.api.training", module)
    flags = ["--process_count=1", "--initialization_timeout=9"]
    assert cli.main(["train", "--task=cb"]) == 0
    assert cli.main(["train", "--task=cb", *flags]) == 0
    assert seen[0]["model_dir"] == seen[1]["model_dir"]
    assert set(seen[0]) == set(seen[1])
    names = {field.name for field in dataclasses.fields(cluster.Settings)}
    assert not names & set(seen[0])
    assert names < {field.name for field in dataclasses.fields(arguments.Train)}
    printed = capsys.readouterr().out
    alone.setattr(distributed, "is_main", lambda: False)
    assert cli.main(["train", "--task=cb", *flags]) == 0
    assert "run folder" in printed
    assert capsys.readouterr().out == ""


def test_doctor_says_what_slurm_needs():
    note = doctor._distributed({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"})[1]
    assert "srun" in note.fix
    (step,) = doctor._distributed({**STEP, "SLURM_NTASKS": "4"})
    assert step.found.endswith("several processes, by SLURM_NTASKS=4")


def test_help_says_who_the_others_are():
    text = {n: s.help for n, s in fields.of(arguments.Train).items()}
    assert "process 0" in text["coordinator_address"]
