"""What flags, variables and machines say of a run's other processes.

Imports JAX on a machine with TPU chips only.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Annotated, Any

from panda_jax.errors import UserError
from panda_jax.fields import Group

# A flag, and the variable that stands in for it; JAX itself reads the first.
VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "process_count": "JAX_NUM_PROCESSES",
    "process_index": "JAX_PROCESS_ID",
}
_SLURM_STEP = (
    "SLURM_JOB_ID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_NODELIST",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Who the other processes are; by default what the cluster says."""

    coordinator_address: Annotated[
        str | None,
        Group.PROCESSES,
        "HOST:PORT of process 0, on which it listens. By default what "
        "JAX_COORDINATOR_ADDRESS, SLURM or the TPU says.",
    ] = None
    process_count: Annotated[
        int | None,
        Group.PROCESSES,
        "How many processes there are. By default what JAX_NUM_PROCESSES, "
        "SLURM or the TPU says, without those 1.",
    ] = None
    process_index: Annotated[
        int | None,
        Group.PROCESSES,
        "Which of the processes this is, from 0. By default what "
        "JAX_PROCESS_ID, SLURM or the TPU says.",
    ] = None
    initialization_timeout: Annotated[
        int, Group.PROCESSES, "Seconds to wait for the other processes."
    ] = 300


def given(settings: Settings, environment: Mapping[str, str]) -> dict[str, Any]:
    """Address, count and index, from flags or else from JAX's variables.

    Raises:
      UserError: one of them cannot be right, or not with the others.
    """
    values: dict[str, Any] = {}
    for name, variable in VARIABLES.items():
        value: Any = getattr(settings, name)
        if value is None and environment.get(variable):
            value = environment[variable]
            if name != "coordinator_address":
                if not value.isdecimal():
                    raise UserError(
                        f"{variable} is {value!r}, expected a whole number. "
                        f"Mend or unset it, or give --{name}."
                    )
                value = int(value)
        values[name] = value
    _check(values, settings.initialization_timeout)
    return values


def _check(given: Mapping[str, Any], timeout: int) -> None:
    address, count, index = (given[name] for name in VARIABLES)
    if address is not None:
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise UserError(
                f"--coordinator_address is {address!r}, expected HOST:PORT, "
                "e.g. 10.0.0.2:8476. Name the machine of process 0 and a free "
                "port on it."
            )
    if count is not None and count < 1:
        raise UserError(f"--process_count is {count}, expected 1 or more.")
    if index is not None and not 0 <= index < (count or index + 1):
        raise UserError(
            f"--process_index is {index}, expected 0 to "
            f"{(count or 1) - 1}: processes are numbered from 0."
        )
    if timeout < 1:
        raise UserError(
            f"--initialization_timeout is {timeout}, expected 1 second or more."
        )


def several(environment: Mapping[str, str]) -> str | None:
    """What says that there are other processes, which JAX can then find.

    Returns:
      In a few words; None where nothing says so.
    """
    step = all(name in environment for name in _SLURM_STEP)
    if step and _number(environment, "SLURM_NTASKS") > 1:
        return f"SLURM_NTASKS={environment['SLURM_NTASKS']}"
    for name in ("MEGASCALE_NUM_SLICES", "OMPI_COMM_WORLD_SIZE"):
        if _number(environment, name) > 1:
            return f"{name}={environment[name]}"
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        if "," in environment.get(name, ""):
            return f"{name}={environment[name]}"
    # A host of a Cloud TPU pod has it from the machine's metadata alone.
    devices = any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
    if devices and "TPU_WORKER_HOSTNAMES" not in environment:
        return _cloud_tpu()
    return None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else 0


def _cloud_tpu() -> str | None:
    # Importing JAX has looked for the chips, and sets the variable.
    from jax._src import cloud_tpu_init

    found = cloud_tpu_init.running_in_cloud_tpu_vm
    asked = "TPU_SKIP_MDS_QUERY" not in os.environ
    return "the metadata of a Cloud TPU" if found and asked else None
