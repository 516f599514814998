"""T5X's gin names, and what each of them sets here.

Macros (`TRAIN_STEPS`) and the few configurables that T5X's users bind on the
command line (`partitioning.PjitPartitioner`). gin itself is the command line's.
"""

import pathlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from panda_jax.errors import UserError


def input_length(lengths: Mapping[str, int]) -> int:
    """`TASK_FEATURE_LENGTHS["inputs"]`."""
    return _length(lengths, "inputs")


def target_length(lengths: Mapping[str, int]) -> int | None:
    """`TASK_FEATURE_LENGTHS["targets"]`; without it, the task's own."""
    return _length(lengths, "targets") if "targets" in lengths else None


def _length(lengths: Any, feature: str) -> int:
    if not isinstance(lengths, Mapping) or not (
        {"inputs"} <= set(lengths) <= {"inputs", "targets"}
    ):
        raise UserError(
            f"TASK_FEATURE_LENGTHS is {lengths!r}, expected a dict of inputs "
            "and targets, e.g. {'inputs': 256, 'targets': 16}; without "
            "targets the task's own length holds."
        )
    return lengths[feature]


def partitions(
    num_partitions: int | None = None, model_parallel_submesh: Any = None
) -> int | None:
    """T5X's `partitioning.PjitPartitioner`, of which one number is left."""
    if model_parallel_submesh is not None:
        raise UserError(
            f"model_parallel_submesh is {model_parallel_submesh}, expected "
            "None: JAX chooses the devices here. Give num_partitions, or "
            "--mesh_shape=data,fsdp,model."
        )
    return num_partitions


def microbatches(num_microbatches: int | None = None) -> int:
    """T5X's `trainer.Trainer`, of which the parts of a batch are left."""
    return 1 if num_microbatches is None else num_microbatches


def constant_rate(
    factors: str = "constant",
    base_learning_rate: float | None = None,
    warmup_steps: int | None = None,
) -> float | None:
    """T5X's `utils.create_learning_rate_scheduler`, constant ones alone."""
    del warmup_steps  # T5X's files bind it beside "constant" too
    if factors != "constant":
        raise UserError(
            f"The learning rate's factors are {factors!r}, expected "
            "'constant'. Other schedules are train.schedule: linear, "
            "constant or exponential."
        )
    return base_learning_rate


CONFIGURABLES = {
    "t5x.input_length": input_length,
    "t5x.target_length": target_length,
    "partitioning.PjitPartitioner": partitions,
    "trainer.Trainer": microbatches,
    "utils.create_learning_rate_scheduler": constant_rate,
}
# Their name -> settings here; the first decides whether a file has spoken.
# None are set by names that mean nothing here.
BINDINGS: dict[str, dict[str, str]] = {
    "MIXTURE_OR_TASK_NAME": {"train.task": "%MIXTURE_OR_TASK_NAME"},
    "TASK_FEATURE_LENGTHS": {
        "train.max_length": "@t5x.input_length()",
        "train.target_length": "@t5x.target_length()",
        "t5x.input_length.lengths": "%TASK_FEATURE_LENGTHS",
        "t5x.target_length.lengths": "%TASK_FEATURE_LENGTHS",
    },
    "TRAIN_STEPS": {"train.steps": "%TRAIN_STEPS", "train.epochs": "None"},
    "EVAL_PERIOD": {
        "train.eval_period": "%EVAL_PERIOD",
        "train.eval_every": "1",
    },
    "EVALUATOR_NUM_EXAMPLES": {
        "train.eval_examples": "%EVALUATOR_NUM_EXAMPLES"
    },
    "MODEL_DIR": {"train.model_dir": "%MODEL_DIR"},
    "INITIAL_CHECKPOINT_PATH": {"train.backbone": "%INITIAL_CHECKPOINT_PATH"},
    "BACKBONE": {"train.backbone": "%BACKBONE"},
    "BATCH_SIZE": {"train.batch_size": "%BATCH_SIZE"},
    "PROMPT_LENGTH": {"train.prompt_length": "%PROMPT_LENGTH"},
    "DROPOUT_RATE": {"train.dropout": "%DROPOUT_RATE"},
    "RANDOM_SEED": {"train.seed": "%RANDOM_SEED"},
    "OPTIMIZER": {"train.optimizer": "%OPTIMIZER"},
    "LEARNING_RATE": {"train.learning_rate": "%LEARNING_RATE"},
    "NUM_PARTITIONS": {"train.num_partitions": "%NUM_PARTITIONS"},
    "partitioning.PjitPartitioner": {
        "train.num_partitions": "@partitioning.PjitPartitioner()"
    },
    "trainer.Trainer": {"train.accumulate": "@trainer.Trainer()"},
    "utils.create_learning_rate_scheduler": {
        "train.learning_rate": "@utils.create_learning_rate_scheduler()",
        "train.schedule": "'constant'",
    },
    "USE_CACHED_TASKS": {},
    "USE_HARDWARE_RNG": {},
    "EVAL_STEPS": {},
    "EVALUATOR_USE_MEMORY_CACHE": {},
    "JSON_WRITE_N_RESULTS": {},
}


def adopted(config: str, given: Sequence[str]) -> list[str]:
    """The bindings for T5X's names that no gin file refers to.

    gin takes a macro that nobody refers to in silence. A name of the command
    line is later than the files and wins; one of a file sets what no file has.

    Args:
      config: what gin has been told so far, as its text.
      given: the command line's own bindings.
    """
    names = [binding.partition("=")[0].strip() for binding in given]
    found = []
    for name, settings in BINDINGS.items():
        if not settings or not _binds(config, name) or _refers(config, name):
            continue
        short = name.rpartition(".")[2]
        said = any(short in given_name.split(".") for given_name in names)
        if said or not _binds(config, next(iter(settings))):
            found += [f"{key} = {value}" for key, value in settings.items()]
    return found


def _binds(config: str, name: str) -> bool:
    """Whether a macro, a setting, or one of a configurable's, is bound."""
    if name.isupper() or name.startswith("train."):
        return bool(re.search(rf"^{name} = ", config, re.MULTILINE))
    module, _, short = name.partition(".")
    pattern = rf"^(?:{module}\.)?{short}\.\w+ = "
    return bool(re.search(pattern, config, re.MULTILINE))


def _refers(config: str, name: str) -> bool:
    """Whether a binding takes its value from the name."""
    if name.isupper():
        return bool(re.search(rf"%{name}\b", config))
    return bool(re.search(rf"@(?:\w+\.)?{name.rpartition('.')[2]}\(", config))


def warn_of_pretraining(backbone: str, steps: int | None) -> None:
    """Says so where the steps look like T5X's, pretraining's included."""
    found = re.fullmatch(r"checkpoint_(\d+)", pathlib.Path(backbone).name)
    before = int(found[1]) if found else 0
    if steps is not None and before and steps > before:
        warnings.warn(
            f"{steps} steps (TRAIN_STEPS) are counted from 0, not from the "
            f"checkpoint's {before}. If they are T5X's, give "
            f"{steps - before}.",
            RuntimeWarning,
            stacklevel=2,
        )
