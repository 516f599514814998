"""The run folder of a `train` that is given none."""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from panda_jax import fields
from panda_jax.cli import arguments
from panda_jax.config import registry
from panda_jax.fields import Setting
from panda_jax.parallel import cluster

# What release 0.1 made a name of, as it was written, defaults included.
_OF_0_1 = (
    "accumulate", "backbone", "batch_size", "chunk", "clip", "data_dir",
    "dropout", "dtype", "epochs", "eval_every", "eval_examples", "eval_period",
    "fusion", "init_stddev", "init_text", "kd_beta", "kd_lambda",
    "kd_transform", "kd_weight", "learning_rate", "max_length", "mesh_shape",
    "method", "model_dir", "num_partitions", "optimizer",
    "parameter_partitioning_dims", "patience", "prompt_init", "prompt_kind",
    "prompt_length", "recipe", "remat", "resize_source", "schedule", "seed",
    "similarity", "source", "sources", "steps", "target_length",
    "target_prompt", "task", "teacher", "temperature", "tfds_data_dir", "top_k",
    "train_examples", "transfer_metric", "weight_decay",
)  # fmt: skip
# What makes no other run: where it is written, by which devices and processes.
_BESIDE_THE_RUN = {
    "model_dir",
    "overwrite",
    *(field.name for field in dataclasses.fields(cluster.Settings)),
    *(field.name for field in dataclasses.fields(arguments.Devices)),
}


def default_folder(args: arguments.Train) -> str:
    """A folder below `runs/` that only the same run leads to.

    Paths count by where they lead, and settings at their default do not count,
    so that neither another spelling nor a setting that a later release brings
    makes another folder. One that release 0.1 named goes on.
    """
    changed = _changed(args)
    settings = fields.of(type(args))
    real = {x: _real(settings[x], changed[x]) for x in sorted(changed)}
    folder = _named(args, real)
    if folder.is_dir() or changed.keys() - {*_OF_0_1}:
        return str(folder)
    old = _named(args, {name: getattr(args, name) for name in _OF_0_1})
    return str(old if old.is_dir() else folder)


def _named(args: arguments.Train, values: dict[str, Any]) -> pathlib.Path:
    text = json.dumps(registry.former(values), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    method = registry.former({"method": args.method})["method"]
    name = f"{args.task}-{method}-s{args.seed}-{digest}"
    return pathlib.Path("runs") / name


def _changed(args: arguments.Train) -> dict[str, Any]:
    """The settings that are not at their default."""
    return {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(args)
        if field.name not in _BESIDE_THE_RUN
        and getattr(args, field.name) != field.default
    }


def _real(setting: Setting, value: Any) -> Any:
    """A setting without what is only its spelling."""
    name = setting.name
    if setting.path is None:
        return value
    if name == "backbone" and not os.path.exists(value):
        return value  # An id, which leads nowhere.
    parts = value.split(",") if name == "sources" else [value]
    return ",".join(_led_to(part.strip()) for part in parts if part.strip())


def _led_to(path: str) -> str:
    """Where a path leads: from here if it is below, else from the root.

    A folder of runs that moves together with what they read keeps its names.
    """
    if "://" in path:
        return path
    here, there = os.path.realpath("."), os.path.realpath(path)
    if os.path.commonpath([here, there]) == here:
        return os.path.relpath(there, here)
    return there
