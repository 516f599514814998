"""A run is a value: the settings of what it trains."""

import dataclasses
import importlib.metadata
import math
import os
import platform
import warnings
from typing import Any

from panda_jax import settings
from panda_jax.errors import UnusedSetting, UserError, unknown_name
from panda_jax.settings import METHODS, RECIPES
from panda_jax.tasks import specs

KINDS = ("deep", "shallow")
SCHEDULES = ("linear", "constant", "exponential")
OPTIMIZERS = ("adamw", "adafactor")
TRANSFORMS = ("clip", "square", "shift", "sigmoid")
FUSIONS = ("early", "late")
# Of `measures.METRICS`, which loads JAX; a test holds them together.
METRICS = (
    "panda",
    "e_avg",
    "on",
    "e_pairs",
    "e_concat",
    "d_concat",
    "d_avg",
    "logme",
    "h_score",
    "probe",
    "gradient",
    "first_steps",
)
INITIALISERS = ("normal", "vocabulary", "labels", "text")
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
      prompt_kind: `deep` (keys and values in every layer; T5: every decoder
        layer) or `shallow`; None for the source's, and without one deep on
        encoders, shallow on T5.
      prompt_length: how many vectors, P; None for the source's, and without
        one 20 on encoders, 100 on T5.
      prompt_init: of a fresh prompt: `normal`, or (shallow) the embeddings of
        sampled `vocabulary`, of the class `labels` or of a `text`; None for
        normal on encoders, and on T5 for labels where a shallow prompt's task
        has some, vocabulary where not.
      init_text: whose words' embeddings prompt_init `text` begins with.
      init_stddev: standard deviation of prompt_init `normal`.
      resize_source: of `pot`: crop a source of another length, or pad it with
        fresh vectors; without it, another length is refused.
      max_length: longest text in word pieces, special ones included.
      target_length: longest target text to learn from, in pieces, the end
        included; None for 256 where it names every tag, else 62. Encoders
        write none.
      batch_size: rows a step.
      epochs: None for max(3, as many as make 300 updates).
      steps: ends the run after exactly so many updates, counted from 0, in
        place of epochs.
      optimizer: `adamw` or `adafactor`; None for adamw on encoders, adafactor
        on T5.
      learning_rate: peak; None for 1e-2 (prompt, pot), 7e-3 (panda), 5e-5
        (model); with adafactor 0.3, and 1e-3 (model).
      weight_decay: the optimizer's; None for 0 on encoders, 1e-5 on T5.
      clip: global norm of the gradient.
      schedule: `linear` to 0, `constant`, or `exponential` (times 0.95 an
        epoch); None for linear on encoders,
        constant on T5.
      dropout: of text, prompt and head; None for the backbone's own.
      accumulate: parts of a batch computed one after another: less memory, and
        the batch's own gradient but for dropout's masks.
      patience: evaluations without a better score after which a run ends
        early; None for never.
      eval_every: epochs between evaluations; the first and the last epoch are
        always evaluated.
      eval_period: updates between evaluations, in place of eval_every; the
        end of the first epoch and of the run are always evaluated.
      train_examples: rows of a subsample in the labels' proportions; None
        for all.
      eval_examples: rows of a subsample of the development split, in the
        labels' proportions; None for all.
      kd_lambda: strength of recipes `paper` and `ours`.
      kd_beta: strength of recipe `released`.
      kd_weight: sets the distillation weight itself; 0 is the control.
      kd_transform: how the similarity becomes the weight's factor: `clip` to
        [0, 1], `square` of that, `shift` (1 + s) / 2, or `sigmoid`; None for
        clip, and sigmoid of a metric without bounds.
      transfer_metric: that measures the similarity of source and target, and
        chooses among several sources.
      top_k: of several sources, how many; None for all.
      fusion: of several sources: `early`, one prompt from their weighted mean,
        or `late` (panda), a teacher each, their logits mixed.
      temperature: that softens both sides of recipe `ours`'s KL; above 0.
      remat: compute activations again in the backward pass rather than keep
        them: less memory, the same numbers.
      dtype: of the backbone; None for float32 on CPU, else bfloat16.
    """

    task: str
    backbone: str = "minilm-l6"
    method: str = "prompt"
    recipe: str = "paper"
    seed: int = 0
    prompt_kind: str | None = None
    prompt_length: int | None = None
    prompt_init: str | None = None
    init_text: str | None = None
    init_stddev: float = 0.02
    resize_source: bool = False
    max_length: int = 128
    target_length: int | None = None
    batch_size: int = 16
    epochs: int | None = None
    steps: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    clip: float = 1.0
    schedule: str | None = None
    dropout: float | None = None
    accumulate: int = 1
    patience: int | None = None
    eval_every: int = 1
    eval_period: int | None = None
    train_examples: int | None = None
    eval_examples: int | None = None
    kd_lambda: float = 1.0
    kd_beta: float = 0.1
    kd_weight: float | None = None
    kd_transform: str | None = None
    transfer_metric: str = "panda"
    top_k: int | None = None
    fusion: str = "early"
    temperature: float = 2.0
    remat: bool = False
    dtype: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for name, known in (
            ("method", METHODS),
            ("recipe", RECIPES),
            ("prompt_kind", (*KINDS, None)),
            ("prompt_init", (*INITIALISERS, None)),
            ("optimizer", (*OPTIMIZERS, None)),
            ("schedule", (*SCHEDULES, None)),
            ("kd_transform", (*TRANSFORMS, None)),
            ("transfer_metric", METRICS),
            ("fusion", FUSIONS),
        ):
            if getattr(self, name) not in known:
                known = [value for value in known if value]
                raise unknown_name(name, getattr(self, name), known)
        for name in (
            "batch_size",
            "epochs",
            "steps",
            "eval_period",
            "accumulate",
            "patience",
            "eval_every",
            "train_examples",
            "eval_examples",
            "prompt_length",
            "top_k",
        ):
            _check_range(self, name, 1, "of 1 or more")
        _check_range(self, "max_length", 3, "of 3 or more")
        _check_range(self, "target_length", 2, "of 2 or more")
        _check_range(self, "seed", 0, "from 0 to 4294967295", below=2**32)
        for name in (
            "weight_decay",
            "init_stddev",
            "kd_weight",
            "kd_lambda",
            "kd_beta",
        ):
            _check_range(self, name, 0, "of 0 or more")
        for name in ("learning_rate", "clip", "temperature"):
            _check_range(self, name, 1e-30, "above 0")
        _check_range(self, "dropout", 0, "of 0 or more, below 1", below=1)
        if self.batch_size % self.accumulate:
            raise UserError(
                f"accumulate is {self.accumulate}, expected a divisor of the "
                f"batch_size {self.batch_size}."
            )
        for one, other, default in (
            ("steps", "epochs", None),
            ("eval_period", "eval_every", 1),
        ):
            values = getattr(self, one), getattr(self, other)
            if values[0] is not None and values[1] != default:
                raise UserError(
                    f"{one} is {values[0]} and {other} is {values[1]}, "
                    f"expected one of them: give --{one}=None or "
                    f"--{other}={default}."
                )
        if (self.prompt_init == "text") != bool(self.init_text):
            raise UserError(
                "--prompt_init=text and --init_text=TEXT belong together: one "
                "of them is missing."
            )

    @property
    def needs_source(self) -> bool:
        """Whether the run starts from, or is taught through, a source."""
        control = self.method == "panda" and self.kd_weight == 0
        return self.method in ("pot", "panda") and not control

    @property
    def weighs_by_similarity(self) -> bool:
        """Whether the distillation's weight is that of source and target."""
        own = self.kd_weight is None and self.recipe != "released"
        return self.method == "panda" and own

    def shaped_as(self, kind: str, length: int) -> "Run":
        """With a source's kind and length where none are set."""
        if self.prompt_kind not in (None, kind):
            return self
        return dataclasses.replace(
            self,
            prompt_kind=kind,
            prompt_length=self.prompt_length or length,
        )

    def for_family(self, *, text_to_text: bool) -> "Run":
        """These settings with the family's defaults in place of None."""
        defaults: dict[str, Any] = {
            "prompt_kind": "deep",
            "prompt_length": 20,
            "prompt_init": "normal",
            "optimizer": "adamw",
            "weight_decay": 0.0,
            "schedule": "linear",
        }
        if text_to_text:
            defaults |= {
                "prompt_kind": "shallow",
                "prompt_length": 100,
                "optimizer": "adafactor",
                "weight_decay": 1e-5,
                "schedule": "constant",
            }
            if self.prompt_kind != "deep":
                labels = specs.get(self.task).labels
                fit = 0 < len(labels) <= (self.prompt_length or 100)
                defaults["prompt_init"] = "labels" if fit else "vocabulary"
        changes = {
            name: value
            for name, value in defaults.items()
            if getattr(self, name) is None
        }
        return dataclasses.replace(self, **changes)

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or the optimizer's and the method's own."""
        if self.learning_rate is not None:
            return self.learning_rate
        return settings.default_learning_rate(self.method, self.optimizer)

    def total_steps(self, steps_per_epoch: int) -> int:
        """`steps`, those of `epochs`, or enough for the size of the task."""
        if self.steps is not None:
            return self.steps
        enough = -(-_LEAST_STEPS // steps_per_epoch)
        epochs = self.epochs or max(_LEAST_EPOCHS, enough)
        return epochs * steps_per_epoch

    def is_evaluated(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the split is scored after so many updates."""
        total = self.total_steps(steps_per_epoch)
        if step in (min(steps_per_epoch, total), total):
            return True
        period = self.eval_period or self.eval_every * steps_per_epoch
        return step % period == 0


# Of settings that nobody gave; there is no task that is taken for granted.
DEFAULTS: dict[str, Any] = {
    field.name: None if field.default is dataclasses.MISSING else field.default
    for field in dataclasses.fields(Run)
}


def left_out(run: Run, *, several: bool) -> Run:
    """The run without settings that were given and that it makes no use of.

    Each of them is an `UnusedSetting`: a warning in Python, where settings are
    shared between methods, and an error on the command line.

    Args:
      run: as it was asked for, before any default is filled in.
      several: whether it is given several sources.
    """
    given = {name: getattr(run, name) for name in DEFAULTS}
    found = settings.unused(given, DEFAULTS, several=several)
    for name, why in found.items():
        warnings.warn(
            f"{name} is {given[name]!r}, but {why}. Leave out --{name}.",
            UnusedSetting,
            stacklevel=3,
        )
    changes: dict[str, Any] = {name: DEFAULTS[name] for name in found}
    return dataclasses.replace(run, **changes) if changes else run


def trimmed(run: Run, *, several: bool = False) -> Run:
    """The same run, its unused settings at their default."""
    return Run(
        **settings.trimmed(dataclasses.asdict(run), DEFAULTS, several=several)
    )


def check_types(values: Any) -> None:
    """Holds each field of a dataclass of settings against its annotation.

    An int where a float is expected becomes one, so that 1 and 1.0 are the
    same run.

    Raises:
      UserError: a value of another type, a NaN or an infinity.
    """
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        hint = str(getattr(field.type, "__name__", field.type))
        kinds = [part.strip() for part in hint.split("|")]
        if type(value) is int and "float" in kinds:
            try:
                value = float(value)
            except OverflowError:  # Python's ints have no end
                value = math.inf
            object.__setattr__(values, field.name, value)
        if type(value) is object:  # gin.REQUIRED
            raise UserError(
                f"{field.name} is not set: a gin file asks for it. Bind the "
                f"file's macro (--gin.NAME=VALUE) or give --{field.name}=..."
            )
        if type(value).__name__.removesuffix("Type") not in kinds:
            raise UserError(
                f"{field.name} is {value!r}, expected a value of type {hint}."
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(
                f"{field.name} is {value}, expected a finite number."
            )


def _check_range(
    run: Run,
    name: str,
    least: float,
    words: str,
    *,
    below: float = math.inf,
) -> None:
    value = getattr(run, name)
    if value is not None and not least <= value < below:
        raise UserError(f"{name} is {value}, expected a number {words}.")


def backbone_name(name: str) -> str:
    """A folder without `./` and a slash at its end, which make no other."""
    # A URL is refused where it is used, as it was written.
    if os.sep in name and "://" not in name:
        return os.path.normpath(name)
    return name


def make_run(**given: Any) -> Run:
    """A `Run`, with an error for a setting that does not exist."""
    for name in given:
        if name not in DEFAULTS:
            raise unknown_name("setting", name, DEFAULTS)
    if "task" not in given:
        raise UserError("No task is given: set task=NAME (--task=NAME).")
    if isinstance(given.get("backbone"), str):
        given["backbone"] = backbone_name(given["backbone"])
    return Run(**given)


def as_gin(run: Run, needs: dict[str, Any]) -> str:
    """A gin file: `panda-jax train --gin_file=` with it repeats the run.

    Args:
      run: the settings.
      needs: further arguments of `train` (source, data_dir, ...); those that
        are None are left out.
    """
    idle = settings.unused(
        dataclasses.asdict(run), DEFAULTS, several=bool(needs.get("sources"))
    )
    values = {
        **{n: x for n, x in dataclasses.asdict(run).items() if n not in idle},
        **{name: value for name, value in needs.items() if value is not None},
    }
    return "".join(f"train.{k} = {v!r}\n" for k, v in values.items())


def versions() -> dict[str, str]:
    """The versions of what computes a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
