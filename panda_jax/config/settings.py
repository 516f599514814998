"""Which settings a run makes use of: the one table of it.

A run's id, a grid's, `--help` and what is refused all follow from here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from panda_jax.config.registry import METHODS, RECIPES, present

_PROMPTED = ("prompt", "pot", "panda")


@dataclasses.dataclass(frozen=True)
class Use:
    """Who listens to a setting.

    Attributes:
      methods: some of `METHODS`.
      recipes: of method `panda`: some of `RECIPES`.
      several: whether it chooses among, or joins, several sources; the recipes
        that it is given for use it with one source too.
      weighs: whether it makes the distillation's weight, which `kd_weight`
        sets in its place.
    """

    methods: tuple[str, ...] = METHODS
    recipes: tuple[str, ...] = RECIPES
    several: bool = False
    weighs: bool = False

    @property
    def who(self) -> str:
        """In words, for help and errors."""
        said = " and ".join(self.methods)
        if "panda" in self.methods and 0 < len(self.recipes) < len(RECIPES):
            said += f", recipe {' or '.join(self.recipes)}"
        if not self.several:
            return said
        several = "several sources"
        return f"{said}; {several}" if self.recipes else f"{said}, {several}"

    @property
    def where(self) -> str:
        """The same for who reads a flag's line alone."""
        said = f"method {_or(self.methods)}"
        if self.several and self.recipes:
            recipes = _or(self.recipes)
            return f"method panda and recipe {recipes}, or several sources"
        if 0 < len(self.recipes) < len(RECIPES):
            said += f" and recipe {_or(self.recipes)}"
        return f"{said} and several sources" if self.several else said


def _or(names: tuple[str, ...]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


# Settings that are not here serve every run.
USES: dict[str, Use] = {
    "recipe": Use(("panda",)),
    "prompt_kind": Use(_PROMPTED),
    "prompt_length": Use(_PROMPTED),
    # What starts from a source has fresh vectors only where it pads one.
    "prompt_init": Use(_PROMPTED),
    "init_text": Use(_PROMPTED),
    "init_stddev": Use(_PROMPTED),
    "resize_source": Use(("pot",)),
    "dtype": Use(_PROMPTED),  # model-tuning is in float32
    "kd_lambda": Use(("panda",), ("paper", "kl"), weighs=True),
    "kd_beta": Use(("panda",), ("released",), weighs=True),
    "kd_weight": Use(("panda",)),
    "kd_transform": Use(
        ("pot", "panda"), ("paper", "kl"), several=True, weighs=True
    ),
    "transfer_metric": Use(
        ("pot", "panda"), ("paper", "kl"), several=True, weighs=True
    ),
    "top_k": Use(("pot", "panda"), (), several=True),
    "fusion": Use(("pot", "panda"), (), several=True),
    "temperature": Use(("panda",), ("kl",)),
}
# Of fresh vectors, which a run from a prompt of its own has none of either.
FRESH = ("prompt_init", "init_text", "init_stddev")


def why_unused(
    name: str, settings: Mapping[str, Any], *, several: bool
) -> str | None:
    """Why a run makes no use of a setting; None where it does.

    Args:
      name: of the setting.
      settings: of the run, all of them.
      several: whether it is given several sources.
    """
    method, recipe = settings["method"], settings["recipe"]
    use = USES.get(name)
    if use is None:
        return None
    if method not in use.methods:
        return f"method {method!r} makes no use of it ({use.who} does)"
    if use.several and several:
        return None
    if use.several and (method == "pot" or not use.recipes):
        return f"one source leaves nothing to choose ({use.who})"
    if method == "panda" and recipe not in use.recipes:
        return f"recipe {recipe!r} makes no use of it ({use.who} does)"
    if method == "pot" and name in FRESH and not settings["resize_source"]:
        return "the prompt starts as the source's (resize_source pads it)"
    # The control keeps what it is the control of.
    if use.weighs and settings["kd_weight"]:
        return "kd_weight sets the distillation's weight itself"
    return None


def unused(
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    several: bool = False,
) -> dict[str, str]:
    """Settings that were changed and that the run makes no use of.

    Args:
      settings: of the run.
      defaults: name -> value of a setting that nobody gave.
      several: whether the run is given several sources.

    Returns:
      Name -> why.
    """
    settings = present({**defaults, **settings})
    found = {}
    for name, default in defaults.items():
        if settings[name] != default:
            why = why_unused(name, settings, several=several)
            if why is not None:
                found[name] = why
    return found


def trimmed(
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    several: bool = False,
) -> dict[str, Any]:
    """The same run with the default in place of all that it does not use.

    Args:
      settings: of a run of this release or of any other.
      defaults: name -> value of a setting that nobody gave.
      several: whether the run is given several sources.
    """
    whole = present({**defaults, **settings})
    idle = set(unused(whole, defaults, several=several))
    if whole["method"] == "panda" and whole["kd_weight"] == 0:
        # The control listens to no teacher.
        taught = {"pot", "panda"}
        idle |= {n for n, use in USES.items() if taught >= {*use.methods}}
        idle.remove("kd_weight")
    if whole["prompt_init"] not in (None, "normal"):
        idle.add("init_stddev")
    return whole | {name: defaults[name] for name in idle}


def used(
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    several: bool = False,
) -> dict[str, Any]:
    """The settings that make a run what it is: used, and not the default.

    Two runs are one if this is equal. A setting that a release adds is at its
    default in every run before it, and so changes none of them.

    Args:
      settings: of a run of this release or of any other.
      defaults: name -> value of a setting that nobody gave.
      several: whether the run is given several sources.
    """
    whole = trimmed(settings, defaults, several=several)
    rate = default_learning_rate(whole["method"], whole["optimizer"])
    if whole["learning_rate"] == rate:
        del whole["learning_rate"]
    return {
        n: x for n, x in whole.items() if n not in defaults or x != defaults[n]
    }


def default_learning_rate(method: str, optimizer: str | None) -> float:
    """The peak of a run that sets none."""
    if optimizer == "adafactor":
        return 1e-3 if method == "finetune" else 0.3
    return {"panda": 7e-3, "finetune": 5e-5}.get(method, 1e-2)
