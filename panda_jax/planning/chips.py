"""Chips that are planned for: their rates, and devices to compile for.

This module loads libtpu where a TPU is asked for, and nothing otherwise.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from panda_jax.errors import UserError, first_line, unknown_name

# Parts of the memory that XLA keeps for itself: v5e has 16 GiB, its compiler
# gives out 15.75.
_RESERVED = 2**28


@dataclasses.dataclass(frozen=True)
class Chip:
    """The public figures of a chip, or of a device where a chip is several.

    Attributes:
      name: of it.
      memory: bytes of HBM.
      flops: bf16 matrix products a second, dense; a multiplication is 2.
      memory_rate: bytes of HBM a second.
      link_rate: bytes a second that it can send to others of its kind.
      devices: of a chip, as JAX counts them.
      sides: of a topology's form, in chips.
    """

    name: str
    memory: float
    flops: float
    memory_rate: float
    link_rate: float
    devices: int = 1
    sides: int = 2

    @property
    def usable(self) -> float:
        """Bytes for a program."""
        return self.memory - _RESERVED


# TPUs: https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e and /tpu7x,
# "system architecture"; links are half of the bidirectional bandwidth given
# there, v4's six of 50 GB/s each way (Jouppi et al., 2023, arXiv 2304.01433).
# A tpu7x chip is two devices, v4's two cores are one (megacore).
# GPUs: NVIDIA's data sheets of the SXM parts, without sparsity; links are half
# of NVLink's total.
TPUS = {
    "v4": Chip("TPU v4", 32 * 2**30, 275e12, 1228e9, 300e9, sides=3),
    "v5e": Chip("TPU v5e", 16 * 2**30, 197e12, 819e9, 200e9),
    "v5p": Chip("TPU v5p", 95 * 2**30, 459e12, 2765e9, 600e9, sides=3),
    "v6e": Chip("TPU v6e", 32 * 2**30, 918e12, 1640e9, 400e9),
    "tpu7x": Chip(
        "half of a TPU7x", 96 * 2**30, 1153e12, 3690e9, 300e9, 2, sides=3
    ),
}
GPUS = {
    "a100": Chip("A100 80GB SXM", 80e9, 312e12, 2039e9, 300e9),
    "h100": Chip("H100 SXM", 80e9, 989e12, 3350e9, 450e9),
    "h200": Chip("H200 SXM", 141e9, 989e12, 4800e9, 450e9),
}
# What `gpu:N` stands for.
GPU = "h100"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Where a program is to run.

    Attributes:
      name: as given.
      platform: `"tpu"`, or `"cpu"`: GPUs cannot be compiled for without one,
        so that a program for them is compiled for as many CPU devices.
      chip: None for CPUs.
      count: of devices.
    """

    name: str
    platform: str
    chip: Chip | None
    count: int


def topology(name: str) -> Topology:
    """`v5e:4x4`, `h100:8`, `gpu:4` or `cpu:8`.

    Raises:
      UserError: it is none of that form.
    """
    kind, _, size = name.partition(":")
    known = [*TPUS, *GPUS, "gpu", "cpu"]
    if kind not in known:
        raise unknown_name("topology", kind, known)
    form, example = r"[1-9]\d*", f"{kind}:8"
    if kind in TPUS:
        sides = TPUS[kind].sides
        form = "x".join([form] * sides)
        example = f"{kind}:2x2x2" if sides == 3 else f"{kind}:4x4"
    if not re.fullmatch(form, size):
        raise UserError(
            f"topology is {name!r}, expected a number of chips as in "
            f"{example!r}."
        )
    count = math.prod(int(side) for side in size.split("x"))
    if kind in TPUS:
        return Topology(name, "tpu", TPUS[kind], count * TPUS[kind].devices)
    gpu = GPUS.get(GPU if kind == "gpu" else kind)
    return Topology(name, "cpu", gpu, count)


def devices(where: Topology) -> list[Any]:
    """Devices to compile for; TPUs need not be there.

    Raises:
      UserError: libtpu is not installed or knows no such slice, or JAX has
        been started with fewer CPU devices.
    """
    import jax

    if where.platform == "tpu":
        return _tpus(where.name)
    # Refused once JAX has been started.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", where.count)
    found = jax.devices("cpu")
    if len(found) < where.count:
        raise UserError(
            f"{where.name!r} needs {where.count} CPU devices, and JAX has been "
            f"started with {len(found)}: plan in a process of its own "
            "(panda-jax plan)."
        )
    return found[: where.count]


def _tpus(name: str) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"Compiling for {name!r} needs libtpu, which is not installed "
            "(no TPU is needed). Run: pip install libtpu"
        )
    # Else libtpu asks the cloud which machine this is, and waits.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    kind, _, size = name.partition(":")
    more: dict[str, Any] = {}
    if kind == "v4":
        more["chip_config_name"] = "megacore"
    if set(size) <= set("1x"):  # a host has more, unless this is said
        more["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **more
        )
    except Exception as error:
        words = first_line(error)
        raise UserError(f"libtpu knows no topology {name!r}: {words}") from None
    return list(found.devices)
