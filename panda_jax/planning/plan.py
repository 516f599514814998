"""Plans: the training step compiled for devices that are not there.

Memory a device, FLOPs, collectives, whether it fits, and how many lanes would.
"""

import dataclasses
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

from panda_jax import models
from panda_jax.config import runs
from panda_jax.config.runs import Run
from panda_jax.interop import hf
from panda_jax.models import Config
from panda_jax.parallel.sharding import AXES, Partitioner
from panda_jax.planning import chips, hlo
from panda_jax.planning.abstract import Elsewhere, Outline
from panda_jax.planning.chips import Topology
from panda_jax.store import backbones, hub
from panda_jax.training import lane_memory

# Compilations of a search, and lanes a device group beyond which it ends.
MOST_COMPILES = 6
MOST_LANES = 512
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
# The two ways in which XLA says so.
_FULL = (
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)


def plan(
    run: Run,
    *,
    topology: str,
    fleet: int = 1,
    partitioner: Partitioner | None = None,
    search: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Compiles a run's step, and finds the largest fleet that fits.

    Args:
      run: the settings; of the backbone only the sizes are needed.
      topology: as `chips.topology` reads it.
      fleet: lanes.
      partitioner: how devices are shared out.
      search: for the largest fleet too; each try is a compilation.
      say: is told what goes on.

    Returns:
      What `plan_text.text` shows and `--json` writes: all bytes, FLOPs and
      seconds are of one device and one step.

    Raises:
      UserError: unknown topology or backbone, or what the run itself would
        refuse.
    """
    where = chips.topology(topology)
    config = sizes(run.backbone)
    dtype = run.dtype or ("float32" if where.chip is None else "bfloat16")
    given = partitioner or Partitioner()
    filled = run.for_family(text_to_text=models.is_text_to_text(config))
    chosen = dataclasses.replace(config, dtype=dtype, remat=run.remat)
    devices = tuple(chips.devices(where))

    def compiled(lanes: int) -> dict[str, Any]:
        elsewhere = Elsewhere(
            num_partitions=given.num_partitions,
            mesh_shape=given.mesh_shape,
            parameter_partitioning_dims=given.parameter_partitioning_dims,
            chunk=_chunk(filled, chosen, given, where, len(devices), lanes),
            devices=devices,
        )
        outline = Outline(
            run, config, dtype=dtype, count=lanes, partitioner=elsewhere
        )
        say(f"compiling a fleet of {lanes} for {topology}")
        return _compiled(outline, where)

    found = compiled(fleet)
    if search and where.platform == "tpu" and run.method != "finetune":
        found["largest_fleet"] = _largest(found, compiled)
    shown = ("task", "backbone", "method", "recipe", "prompt_kind")
    shown += ("prompt_length", "batch_size", "max_length", "remat")
    return {
        "topology": topology,
        "compiled_for": "TPU" if where.platform == "tpu" else "CPU",
        "settings": {name: getattr(filled, name) for name in shown}
        | {"dtype": "float32" if run.method == "finetune" else dtype},
        **found,
        "versions": runs.versions(),
    }


def _chunk(
    run: Run,
    config: Config,
    given: Partitioner,
    where: Topology,
    devices: int,
    lanes: int,
) -> int:
    """Lanes at a time: as asked, or as a run there would choose."""
    if given.chunk is not None:
        return given.chunk
    if where.chip is None:
        return 1
    sizes_ = given.shape(devices, lanes)
    shape: dict[str, int] = dict(zip(AXES, sizes_, strict=True))
    return lane_memory.choose(
        config,
        rows=run.batch_size // run.accumulate,
        positions=run.max_length + (run.prompt_length or 0),
        targets=run.target_length or 62,
        mesh=shape,
        dims=given.parameter_partitioning_dims,
        here=-(-lanes // shape["data"]),
        memory=int(where.chip.memory),
    )


def sizes(name: str) -> Config:
    """The sizes of a backbone: of the zoo, a Hugging Face folder or the hub.

    Raises:
      UserError: it is none of them.
    """
    if pathlib.Path(name).expanduser().is_dir() or hub.is_name(name):
        return hf.sizes(backbones.folder_of(name))
    return models.config(name.removeprefix("random:"))


def _compiled(outline: Outline, where: Topology) -> dict[str, Any]:
    """What one compilation tells."""
    begun = time.monotonic()
    layout = outline.parts.layout
    about: dict[str, Any] = {
        "mesh": dict(outline.mesh.shape),
        "lanes": {
            "fleet": len(outline.parts.lanes),
            "padded": outline.lanes,
            "per_group": outline.lanes // layout.groups,
            "chunk": layout.chunk,
        },
        "data": {"rows": outline.rows, "resident": outline.resident},
    }
    memory: dict[str, float] = {**outline.groups()}
    usable = where.chip.usable if where.chip else None
    try:
        compiled = outline.lower().compile()
    except Exception as error:
        full = _full(str(error))
        if full is None:
            raise
        memory["needed_at_least"], memory["usable"] = full
        about |= {
            "memory": memory,
            "fits": False,
            "fits_by": "compiler",
            "lacking": full[0] - full[1],
            "message": str(error).splitlines()[0],
        }
    else:
        stats = compiled.memory_analysis()
        memory |= {
            "arguments": stats.argument_size_in_bytes,
            "temporaries": stats.temp_size_in_bytes,
            "code": stats.generated_code_size_in_bytes,
        }
        fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
        memory["total"] = fresh + sum(
            memory[name] for name in ("arguments", "temporaries", "code")
        )
        about |= {"memory": memory, "fits": None, "fits_by": "not checked"}
        if where.platform == "tpu":
            about |= {"fits": True, "fits_by": "compiler"}
        elif usable is not None:
            fits = memory["total"] <= usable
            about |= {"fits": fits, "fits_by": "estimate"}
        if usable is not None:
            memory["usable"] = usable
        about |= _step(hlo.costs(compiled.as_text()), outline, where)
    about["compile_seconds"] = round(time.monotonic() - begun, 1)
    return about


def _full(message: str) -> tuple[float, float] | None:
    """Bytes needed at least, and bytes that there are; None if not of that."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for pattern in _FULL:
        found = pattern.search(message)
        if found:
            needed, unit, usable, other = found.groups()
            return (
                float(needed) * _UNITS[unit],
                float(usable) * _UNITS[other],
            )
    return None


def _step(
    costs: hlo.Costs, outline: Outline, where: Topology
) -> dict[str, Any]:
    """FLOPs, bytes and collectives of a step; the time that they take at
    least, at the chip's rates."""
    sent = sum(costs.sent.values())
    step: dict[str, Any] = {"flops": costs.flops, "bytes": costs.bytes}
    if where.chip is not None:
        seconds = {
            "compute": costs.flops / where.chip.flops,
            "memory": costs.bytes / where.chip.memory_rate,
            "links": sent / where.chip.link_rate,
        }
        bound = max(seconds, key=lambda name: seconds[name])
        rows = len(outline.parts.lanes) * outline.run.batch_size
        step |= {
            "seconds": seconds,
            "roofline_seconds": seconds[bound],
            "bound": bound,
            "examples_per_second": rows / max(seconds[bound], 1e-12),
        }
    step["open_loops"] = costs.open_loops
    return {
        "step": step,
        "collectives": {
            kind: {"count": costs.counts[kind], "bytes": costs.sent[kind]}
            for kind in sorted(costs.counts)
        },
    }


def _largest(
    first: dict[str, Any], compiled: Callable[[int], dict[str, Any]]
) -> dict[str, Any]:
    """The most lanes that fit, by whole rows of the data axis.

    The next try follows from what a lane more has taken so far; only the
    compiler's answers count.
    """
    groups = first["mesh"]["data"]
    tried: list[dict[str, Any]] = []
    known: dict[int, float] = {0: first["memory"]["backbone"]}
    low, high = 0, MOST_LANES + 1

    def took(found: dict[str, Any]) -> None:
        nonlocal low, high
        each = found["lanes"]["per_group"]
        tried.append(
            {
                "fleet": each * groups,
                "fits": found["fits"],
                "total": found["memory"].get("total"),
            }
        )
        if found["fits"]:
            low = max(low, each)
            known[each] = found["memory"]["total"]
        else:
            high = min(high, each)

    took(first)
    usable = first["memory"]["usable"]
    while high - low > 1 and len(tried) < MOST_COMPILES:
        if low == 0:
            guess = high // 2
        else:
            below = max((each for each in known if each < low), default=0)
            more = (known[low] - known[below]) / (low - below)
            # What does not fit where it should: less and less of the room.
            missed = sum(not each["fits"] for each in tried[1:])
            room = (usable - known[low]) * (1 - 0.03 * missed**2)
            guess = low + int(room / max(more, 1.0))
        guess = min(max(guess, low + 1), high - 1, MOST_LANES)
        took(compiled(guess * groups))
    return {
        "fleet": low * groups,
        "exact": high - low == 1 and high <= MOST_LANES,
        "least_too_large": high * groups if high <= MOST_LANES else None,
        "tried": tried,
    }
