"""A run is a value: what it trains, its id, and the files that it leaves.

A run's folder holds everything; `result.json`, renamed into place last, is
the mark that it is done.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
from typing import Any

from panda_jax.errors import UserError, unknown_name
from panda_jax.files import read_json

METHODS = ("prompt", "pot", "panda", "model")
RECIPES = ("paper", "released", "ours")
KINDS = ("deep", "shallow")
_PACKAGES = ("panda-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")

# Small tasks are given at least this many updates when no --epochs is set.
_LEAST_STEPS = 300
_LEAST_EPOCHS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of one training run; also the gin configurable `train`.

    Attributes:
      task: task id.
      backbone: backbone id or folder.
      method: `prompt` (prompt-tuning), `pot` (start from a source prompt),
        `panda` (distil from the source's prompt tuned on the target), `model`
        (all weights).
      recipe: of `panda`. `paper`: weight = kd_lambda * similarity, mean
        squared error, deterministic teacher. `released`: weight = 0.1 *
        kd_beta / batch_size, teacher with dropout. `ours`: as `paper` with
        KL at `temperature`.
      seed: of initialisation, batch order and dropout.
      prompt_kind: `deep` (keys and values in every layer) or `shallow`.
      prompt_length: P.
      init_stddev: of a fresh prompt.
      max_length: longest text in word pieces, special ones included.
      batch_size: B.
      epochs: None for max(3, as many as make 300 updates).
      learning_rate: peak; None for 1e-2 (prompt, pot), 7e-3 (panda), 5e-5
        (model).
      weight_decay: AdamW's.
      clip: global norm of the gradient.
      schedule: `linear` to 0, or `constant`.
      dropout: of text, prompt and head; None for the backbone's own.
      eval_every: epochs between evaluations; the first and the last epoch are
        always evaluated.
      train_examples: rows of a label-balanced subsample; None for all.
      eval_examples: likewise of the development split.
      kd_lambda: strength of recipes `paper` and `ours`.
      kd_beta: strength of recipe `released`.
      kd_weight: sets the distillation weight itself; 0 is the control.
      temperature: of recipe `ours`.
      dtype: of the backbone; None for float32 on CPU, else bfloat16.
    """

    task: str
    backbone: str = "minilm-l6"
    method: str = "prompt"
    recipe: str = "paper"
    seed: int = 0
    prompt_kind: str = "deep"
    prompt_length: int = 20
    init_stddev: float = 0.02
    max_length: int = 128
    batch_size: int = 16
    epochs: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.0
    clip: float = 1.0
    schedule: str = "linear"
    dropout: float | None = None
    eval_every: int = 1
    train_examples: int | None = None
    eval_examples: int | None = None
    kd_lambda: float = 1.0
    kd_beta: float = 0.1
    kd_weight: float | None = None
    temperature: float = 2.0
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, METHODS),
            ("recipe", self.recipe, RECIPES),
            ("prompt_kind", self.prompt_kind, KINDS),
        ):
            if value not in known:
                raise unknown_name(name, value, known)
        for name in (
            "batch_size",
            "epochs",
            "eval_every",
            "train_examples",
            "eval_examples",
            "prompt_length",
        ):
            _check_at_least(self, name, 1)
        _check_at_least(self, "max_length", 4)
        for name in ("learning_rate", "clip", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} is {value!r}, expected above 0.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}, expected in [0, 1).")

    @property
    def needs_source(self) -> bool:
        """Whether the run starts from, or is taught through, a source."""
        control = self.method == "panda" and self.kd_weight == 0
        return self.method in ("pot", "panda") and not control

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or the method's own."""
        if self.learning_rate is not None:
            return self.learning_rate
        return {"panda": 7e-3, "model": 5e-5}.get(self.method, 1e-2)

    def epochs_for(self, steps_per_epoch: int) -> int:
        """`epochs`, or enough of them for the size of the task."""
        if self.epochs is not None:
            return self.epochs
        enough = -(-_LEAST_STEPS // steps_per_epoch)
        return max(_LEAST_EPOCHS, enough)


def _check_at_least(run: Run, name: str, least: int) -> None:
    value = getattr(run, name)
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(
            f"{name} is {value!r}, expected an integer of {least} or more."
        )


def make_run(**settings: Any) -> Run:
    """A `Run`, with an error for a setting that does not exist."""
    known = [field.name for field in dataclasses.fields(Run)]
    for name in settings:
        if name not in known:
            raise unknown_name("setting", name, known)
    if "task" not in settings:
        raise UserError("No task is given: set task=NAME (--task=NAME).")
    return Run(**settings)


def run_id(run: Run, needs: dict[str, str | float | None]) -> str:
    """A readable name and 10 hex digits over the canonical settings.

    Args:
      run: the settings.
      needs: what identifies the prompts that the run starts from.
    """
    value = {**dataclasses.asdict(run), "needs": needs}
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:10]
    return f"{run.task}-{run.method}-s{run.seed}-{digest}"


def as_gin(run: Run) -> str:
    """The settings as a gin file: `panda-jax train --gin_file=` repeats it."""
    lines = [
        f"train.{field.name} = {getattr(run, field.name)!r}"
        for field in dataclasses.fields(run)
    ]
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """The versions of what computes a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def read_result(folder: pathlib.Path) -> dict[str, Any] | None:
    """The run's `result.json`, or None while it is not done."""
    path = folder / "result.json"
    if not path.exists():
        return None
    return read_json(path, what="result file")


def check_same_run(folder: pathlib.Path, description: dict[str, Any]) -> None:
    """Refuses to go on in a folder that another run has begun.

    Raises:
      UserError: `run.json` there describes other settings; names them.
    """
    path = folder / "run.json"
    if not path.exists():
        return
    old = read_json(path, what="run description")
    if old.get("run_id") == description["run_id"]:
        return
    flat_old = {**old.get("settings", {}), **old.get("needs", {})}
    flat_new = {**description["settings"], **description["needs"]}
    changes = [
        f"{name}: {flat_old.get(name)!r} there, {value!r} now"
        for name, value in flat_new.items()
        if flat_old.get(name) != value
    ]
    raise UserError(
        f"The model_dir {str(folder)!r} holds another run "
        f"({old.get('run_id')}): {'; '.join(changes) or 'unknown settings'}. "
        "Choose another --model_dir, or delete that folder."
    )
