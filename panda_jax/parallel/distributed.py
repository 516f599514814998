"""Several processes that train one run together, as JAX sees them.

Nothing here is needed by a single process, whatever its number of devices.
JAX is imported only where there is something to do.
"""

import dataclasses
import itertools
import json
import os
import socket
import sys
import threading
from typing import Any, NoReturn

from panda_jax.errors import UserError
from panda_jax.parallel import cluster

# A process that has been silent for so long counts as dead, and JAX ends the
# others.  JAX's own default, 100 s, keeps a pod idle for longer.
HEARTBEAT_TIMEOUT = 30
# JAX ends the process from C++ when its own deadline passes, without a chance
# to say why: ours comes first.
_NEVER = 7 * 24 * 3600
# How long a process that failed waits for the others to fail alike.
APART_SECONDS = 120.0
_failures = itertools.count()
# What a collective raises when the process at its other end is gone.
_LOST = (
    "gloo",
    "connection closed by peer",
    "connection reset",
    "coordination service",
    "heartbeat",
    "socket closed",
)


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which process this is, of how many."""

    index: int = 0
    count: int = 1


_current = Processes()


def initialize(settings: cluster.Settings) -> Processes:
    """Finds the other processes, where there are any, and meets them.

    Must come before anything that touches JAX's devices.  Without other
    processes nothing is done.  A process that fails here cannot try again.

    Raises:
      UserError: the settings contradict each other or are incomplete, or not
        all processes came in time.
    """
    global _current
    given = cluster.given(settings, os.environ)
    why = cluster.several(os.environ)
    absent = [name for name in cluster.VARIABLES if given[name] is None]
    if given["process_count"] == 1 or (len(absent) == 3 and why is None):
        return _current
    if absent and why is None:
        said = [name for name in cluster.VARIABLES if name not in absent]
        raise UserError(
            f"Got {_names(said)} without {_names(absent)}, expected all three "
            "or none: outside SLURM and TPU pods nothing else tells the "
            "processes of each other. Give the missing one to every process."
        )
    if given["process_index"] == 0 and given["coordinator_address"]:
        _check_free(given["coordinator_address"])
    _current = Processes(given["process_index"] or 0, 0)
    _meet(given, settings.initialization_timeout, why)
    import jax

    _current = Processes(jax.process_index(), jax.process_count())
    expected = given["process_count"] or _current.count
    if expected != _current.count:
        raise UserError(
            f"--process_count is {expected} here and {_current.count} for "
            "process 0. Give the same number to every process."
        )
    return _current


def _check_free(address: str) -> None:
    """A port that is taken can crash JAX: process 0 looks at it first."""
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except OSError as error:
        raise UserError(
            f"Process 0 cannot listen at {address}: {error.strerror}. Give "
            "every process a --coordinator_address with a free port; or is "
            "an earlier process 0 still running?"
        ) from None


def _meet(given: dict[str, Any], timeout: int, why: str | None) -> None:
    """Connects to the others, or says why not before JAX ends the process."""
    import jax

    # It would swallow SIGTERM for checkpoints of its own.  A run is safe to
    # kill, and `kill`, scancel and a preempted pod must end it at once.
    jax.config.update("jax_enable_preemption_service", False)
    failures: list[Exception] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                coordinator_address=given["coordinator_address"],
                num_processes=given["process_count"],
                process_id=given["process_index"],
                initialization_timeout=_NEVER,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            )
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise UserError(_not_all_came(timeout))
    if failures:
        reason = " ".join(str(failures[0]).split()).rstrip(".")
        raise UserError(
            f"The processes ({why or 'by flags'}) could not be brought "
            f"together: {reason}. Give {_names(list(cluster.VARIABLES))} to "
            "every process; on a single TPU host set TPU_SKIP_MDS_QUERY=1."
        )


def _not_all_came(timeout: int) -> str:
    from jax._src.distributed import global_state

    address = global_state.coordinator_address
    index, count = global_state.process_id, global_state.num_processes
    if address is None:
        return (
            f"The address of process 0 was not found within {timeout} s. Are "
            "all machines up, and do they know each other's names? Or give "
            "--coordinator_address=HOST:PORT."
        )
    if index == 0:
        return (
            f"Process 0 of {count} waited {timeout} s at {address}, and not "
            "all others came (JAX does not say which). Start each index from "
            f"1 to {count - 1} once, with this address and the same "
            "--process_count; see the other processes' logs; or raise "
            "--initialization_timeout."
        )
    if _reachable(address):
        return (
            f"Process {index} of {count} reached process 0 at {address}, but "
            f"within {timeout} s not all others did. Start each index from 0 "
            f"to {count - 1} once, with the same --process_count; see the "
            "other processes' logs; or raise --initialization_timeout."
        )
    return (
        f"Process {index} of {count} could not reach process 0 at {address} "
        f"within {timeout} s. Is it running, does its name resolve here, and "
        "does the firewall let this port pass? Mend it, or give another "
        "--coordinator_address to every process."
    )


def _reachable(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 3).close()
    except OSError:
        return False
    return True


def _names(names: list[str]) -> str:
    return " and ".join(f"--{name}" for name in names)


def is_main() -> bool:
    """Whether this is process 0, which alone writes and reports."""
    return _current.index == 0


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name."""
    if _current.count > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def from_main(value: Any) -> Any:
    """Process 0's value, of JSON, in every process."""
    if _current.count == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    # All processes give arrays of one size; only process 0's counts.
    room = np.zeros(size, np.uint8)
    room[: min(size, text.size)] = text[:size]
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(room)))


def gathered(value: Any) -> list[Any]:
    """Each process's value, of JSON, in every process."""
    if _current.count == 1:
        return [value]
    import numpy as np
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    room = np.zeros(sizes.max(), np.uint8)
    room[: text.size] = text
    rows = multihost_utils.process_allgather(room)
    return [
        json.loads(bytes(row[:size]))
        for row, size in zip(rows, sizes, strict=True)
    ]


def all_failed() -> bool:
    """Whether every process comes here soon; one that failed asks it.

    By the coordinator and no collective: the others may be in one, which waits
    for this process.
    """
    if _current.count == 1:
        return True
    import jax
    from jax._src.distributed import global_state

    name = f"panda_jax failure {next(_failures)}"
    client = global_state.client
    assert client is not None
    try:
        client.wait_at_barrier(name, round(1000 * APART_SECONDS))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def shutdown() -> None:
    """Parts from the others, once all have come to this point."""
    global _current
    if _current.count > 1:
        import jax

        jax.distributed.shutdown()
    _current = Processes()


def explain(error: BaseException) -> str | None:
    """In words, what ended one of several processes; None for a single one."""
    if _current == Processes():
        return None
    text = " ".join(str(error).split())
    who = f"process {_current.index} of {_current.count}"
    if any(word in text.lower() for word in _LOST):
        return (
            f"{who} lost another process, which has ended or whose machine "
            f"has gone ({text[:200]}). The log that ends first says why. "
            "Nothing that was complete is lost: start all of them again."
        )
    return (
        f"{who} ends with the error above, and the others with it. Mend it "
        "and start all of them again."
    )


def leave(status: int) -> None:
    """Ends this process at once if there are others, so that they end too.

    An orderly end would wait for them while they wait for this one.
    """
    if _current != Processes():
        end_at_once(status)


def end_at_once(status: int) -> NoReturn:
    """Ends this process without waiting for threads or others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
