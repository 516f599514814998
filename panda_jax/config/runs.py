"""A run is a value: the settings of what it trains."""

import dataclasses
import importlib.metadata
import math
import os
import platform
import warnings
from typing import Annotated, Any

from panda_jax import fields
from panda_jax.config import registry, settings
from panda_jax.errors import UnusedSetting, UserError, unknown_name
from panda_jax.fields import BackboneName, Group, OneOf
from panda_jax.tasks import specs

_PACKAGES = ("panda-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")

# Small tasks are given at least this many updates when no --epochs is set.
_LEAST_STEPS = 300
# Of a run that does not say how often.
_MOST_EVALUATIONS = 20
_LEAST_EPOCHS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of one training run; also the gin configurable `train`.

    Each annotation says what its setting is; None stands for a default that
    depends on the backbone, the method or the task.
    """

    task: Annotated[
        str, Group.RUN, "The task to learn; `panda-jax tasks` lists them."
    ]
    backbone: Annotated[
        BackboneName,
        Group.RUN,
        "The pretrained model: an id such as minilm-l6, bert-base or t5-small, "
        "a folder of Hugging Face's or T5X's format, org/name of the Hugging "
        "Face hub, or random:ID for random weights.",
    ] = "minilm-l6"
    method: Annotated[
        registry.Method,
        Group.RUN,
        "How it is adapted: prompt trains a fresh prompt, pot one that starts "
        "as the source's, panda a fresh one that also learns from a teacher "
        "(the source's prompt tuned on the target), finetune all weights.",
    ] = "prompt"
    recipe: Annotated[
        registry.Recipe,
        Group.RUN,
        "How the teacher is listened to. paper: mean squared error of the "
        "logits, weight kd_lambda * similarity of source and target; released "
        "(the authors' code): weight 0.1 * kd_beta / batch_size, teacher with "
        "dropout; kl: as paper, with the KL divergence at a temperature.",
    ] = "paper"
    seed: Annotated[
        int,
        Group.RUN,
        "Seed of the initial values, of the order of the rows and of dropout.",
    ] = 0
    prompt_kind: Annotated[
        registry.PromptKind | None,
        Group.PROMPT,
        "deep: keys and values in every layer (of a T5: every decoder layer); "
        "shallow: embeddings before the text. By default the source's; "
        "without a source deep on encoders, shallow on a T5.",
    ] = None
    prompt_length: Annotated[
        int | None,
        Group.PROMPT,
        "How many vectors the prompt has. By default as many as the source's; "
        "without a source 20 on encoders, 100 on a T5.",
    ] = None
    prompt_init: Annotated[
        registry.Initialiser | None,
        Group.PROMPT,
        "What a fresh prompt begins as: random normal numbers, or, if it is "
        "shallow, embeddings: of words drawn from the vocabulary, of the "
        "class labels, or of --init_text. By default normal on encoders; on a "
        "T5 labels where the task has few enough, else vocabulary.",
    ] = None
    init_text: Annotated[
        str | None,
        Group.PROMPT,
        "The text whose words' embeddings the prompt begins as, with "
        "--prompt_init=text.",
    ] = None
    init_stddev: Annotated[
        float,
        Group.PROMPT,
        "Standard deviation of the numbers of --prompt_init=normal.",
    ] = 0.02
    resize_source: Annotated[
        bool,
        Group.SOURCES,
        "Crop a source prompt that is longer than --prompt_length, pad a "
        "shorter one with fresh vectors. Otherwise another length is refused.",
    ] = False
    max_length: Annotated[
        int,
        Group.DATA,
        "Longest input in word pieces, special ones included; what is longer "
        "is cut.",
    ] = 128
    target_length: Annotated[
        int | None,
        Group.DATA,
        "Longest target text that a T5 learns from, in pieces, its end "
        "included. By default 256 for tasks whose target names every tag, "
        "else 62.",
    ] = None
    batch_size: Annotated[
        int, Group.TRAINING, "How many rows an update learns from."
    ] = 16
    epochs: Annotated[
        int | None,
        Group.TRAINING,
        "Passes over the training rows. By default 3, or as many as make 300 "
        "updates.",
    ] = None
    steps: Annotated[
        int | None,
        Group.TRAINING,
        "Updates after which the run ends, in place of --epochs.",
    ] = None
    optimizer: Annotated[
        registry.Optimizer | None,
        Group.TRAINING,
        "How gradients become updates. By default adamw on encoders, adafactor "
        "on a T5.",
    ] = None
    learning_rate: Annotated[
        float | None,
        Group.TRAINING,
        "The highest learning rate of the schedule. By default 1e-2 for "
        "prompt and pot, 7e-3 for panda, 5e-5 for finetune; with adafactor "
        "0.3, and 1e-3 for finetune.",
    ] = None
    weight_decay: Annotated[
        float | None,
        Group.TRAINING,
        "The optimizer's weight decay. By default 0 on encoders, 1e-5 on a T5.",
    ] = None
    clip: Annotated[
        float,
        Group.TRAINING,
        "Largest global norm of the gradient, which is scaled down to it.",
    ] = 1.0
    schedule: Annotated[
        registry.Schedule | None,
        Group.TRAINING,
        "The course of the learning rate: linear falls to 0 at the end, "
        "constant stays, exponential is multiplied by 0.95 an epoch. By "
        "default linear on encoders, constant on a T5.",
    ] = None
    dropout: Annotated[
        float | None,
        Group.TRAINING,
        "Dropout rate of text, prompt and head, 0 to 1. By default the "
        "backbone's own.",
    ] = None
    accumulate: Annotated[
        int,
        Group.TRAINING,
        "Parts that a batch is computed in, one after another: less memory, "
        "and the same gradient but for dropout's masks.",
    ] = 1
    patience: Annotated[
        int | None,
        Group.EVALUATION,
        "End the run after so many evaluations without a better score. By "
        "default it runs to its end.",
    ] = None
    eval_every: Annotated[
        int,
        Group.EVALUATION,
        "Epochs between evaluations; the first and the last epoch always end "
        "with one. At 1 it is each epoch of a run of up to 20, or with "
        "--patience; of longer ones every second, third, ... epoch, so that "
        "there are some twenty. --eval_period has no such bound.",
    ] = 1
    eval_period: Annotated[
        int | None,
        Group.EVALUATION,
        "Updates between evaluations, in place of --eval_every; the first "
        "epoch and the run always end with one.",
    ] = None
    train_examples: Annotated[
        int | None,
        Group.DATA,
        "Train on a sample of so many rows, labels in their proportions. By "
        "default on all.",
    ] = None
    eval_examples: Annotated[
        int | None,
        Group.EVALUATION,
        "Evaluate on a sample of so many development rows, labels in their "
        "proportions. By default on all.",
    ] = None
    select_on: Annotated[
        registry.SelectOn,
        Group.EVALUATION,
        "The rows by which the best evaluation's prompt is chosen: validation, "
        "or held_out: a fifth of the training rows, which then are not learnt "
        "from, so that what is reported was never chosen on.",
    ] = "validation"
    split: Annotated[
        registry.Reported,
        Group.EVALUATION,
        "The rows whose score is reported; test where the task's files have a "
        "labelled test split.",
    ] = "validation"
    kd_lambda: Annotated[
        float,
        Group.DISTILLATION,
        "Strength of the distillation, which the similarity is multiplied by.",
    ] = 1.0
    kd_beta: Annotated[
        float,
        Group.DISTILLATION,
        "Strength of the distillation in the released code's way of weighing.",
    ] = 0.1
    kd_weight: Annotated[
        float | None,
        Group.DISTILLATION,
        "The weight of the distillation itself, in place of what the recipe "
        "computes; 0 is the control, which has everything but a teacher.",
    ] = None
    kd_transform: Annotated[
        registry.Transform | None,
        Group.DISTILLATION,
        "How a similarity s becomes the factor of the weight: clip to [0, 1], "
        "the square of that, shift (1 + s) / 2, or sigmoid. By default clip, "
        "and sigmoid for metrics without bounds.",
    ] = None
    transfer_metric: Annotated[
        str,
        OneOf(registry.METRICS.names),
        Group.SOURCES,
        "The metric by which source and target are compared, for the "
        "distillation's weight, and to choose among several sources.",
    ] = "panda"
    top_k: Annotated[
        int | None,
        Group.SOURCES,
        "How many of several sources are used, best first. By default all.",
    ] = None
    fusion: Annotated[
        registry.Fusion,
        Group.SOURCES,
        "How several sources are joined: early makes one prompt of their "
        "weighted mean, late (method panda) one teacher of each and mixes "
        "their logits.",
    ] = "early"
    temperature: Annotated[
        float,
        Group.DISTILLATION,
        "Temperature that the logits of both sides of the KL divergence are "
        "divided by, above 0.",
    ] = 2.0
    remat: Annotated[
        bool,
        Group.DEVICES,
        "Compute activations again in the backward pass rather than keep "
        "them: less memory, more time, the same numbers.",
    ] = False
    dtype: Annotated[
        registry.Dtype | None,
        Group.DEVICES,
        "Type of the frozen backbone's numbers. By default float32 on CPU, "
        "bfloat16 on accelerators.",
    ] = None

    def __post_init__(self) -> None:
        now = registry.present({n: getattr(self, n) for n in registry.FORMER})
        for name, value in now.items():
            object.__setattr__(self, name, value)
        fields.check(self)
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
        if not (self.eval_period or self.patience or self.eval_every > 1):
            # Patience counts evaluations, so that it asks for each epoch's.
            epochs = -(-total // steps_per_epoch)
            period *= -(-epochs // _MOST_EVALUATIONS)
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
