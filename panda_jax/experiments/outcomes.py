"""What became of a run: done with a score, or left out with a reason."""

import dataclasses
import math
from typing import Any, NamedTuple

# Kind -> the name of its rows; PANDA's have the recipe.
LABELS = {
    "model": "model-tuning",
    "prompt": "prompt-tuning",
    "pot": "PoT",
    "control": "PANDA weight 0",
    "source": "source prompt",
}
# What a row or column says already.
_IDENTITY = ("task", "backbone", "method", "recipe", "seed")
# Settings of the distillation, which only PANDA has.
_DISTILLATION = (
    "kd_lambda",
    "kd_beta",
    "kd_weight",
    "kd_transform",
    "transfer_metric",
    "temperature",
    "fusion",
)


class Excluded(NamedTuple):
    """A run that no average holds.

    Attributes:
      status: `failed` (the run says why), `unfinished`, `not begun` (a grid
        lists it), `not listed` (it lies below a grid that lists it no more),
        `unreadable`, `double` (another folder of the same run counts), `other
        metric` (than the target's other runs) or `other` (another run of the
        same cell counts).
      run_id: its name; its folder where it says none.
      folder: below the folder of all, with `/`.
      reason: in words.
      backbone: of the run, as are `label` (the row it would be in), `source`,
        `target` and `seed`; "" where it does not say.
    """

    status: str
    run_id: str
    folder: str
    reason: str
    backbone: str = ""
    label: str = ""
    source: str = ""
    target: str = ""
    seed: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoneRun:
    """One run that is done.

    Attributes:
      run_id: its name.
      folder: below the folder of all, with `/`.
      nested: whether another run made it for itself.
      backbone: its id.
      kind: `model`, `prompt`, `source`, `pot`, `panda` or `control`.
      label: of the rows it is in, such as "PANDA paper".
      source: the source task; "" where there is none.
      target: the task it was trained on.
      seed: its seed.
      metric: of the value.
      value: in points of 100; higher = better.
      settings: those of `run.json`.
      needs: the prompts and data it rests on, by role.
      floor: points of the best answer that reads nothing; NaN where the run
        does not say.
      variant: the settings in which the runs of its label differ, which the
        label names.
    """

    run_id: str
    folder: str
    nested: bool
    backbone: str
    kind: str
    label: str
    source: str
    target: str
    seed: int
    metric: str
    value: float
    settings: dict[str, Any]
    needs: dict[str, Any]
    floor: float = math.nan
    variant: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def cell(self) -> tuple[str, str, str, str]:
        """Backbone, label, source and target."""
        return self.backbone, self.label, self.source, self.target

    @property
    def compared(self) -> dict[str, Any]:
        """The settings that tell it from another run of the same cell."""
        unused = set(_IDENTITY)
        if self.kind != "panda":
            unused |= set(_DISTILLATION)
        if self.kind in ("model", "source"):
            unused |= {"top_k"}
        return {k: v for k, v in self.settings.items() if k not in unused}

    def left_out(self, status: str, reason: str) -> Excluded:
        """The same run as one that does not count."""
        return Excluded(
            status,
            self.run_id,
            self.folder,
            reason,
            self.backbone,
            self.label,
            self.source,
            self.target,
            str(self.seed),
        )
