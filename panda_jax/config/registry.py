"""The names that settings may have, each written down once.

No JAX here: a command line is checked before anything is loaded. The modules
that give the names their meaning fill a `Registry`, which refuses to be
incomplete, or take the names from here.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, get_args

Method = Literal["prompt", "pot", "panda", "finetune"]
Recipe = Literal["paper", "released", "kl"]
PromptKind = Literal["deep", "shallow"]
Initialiser = Literal["normal", "vocabulary", "labels", "text"]
Optimizer = Literal["adamw", "adafactor"]
Schedule = Literal["linear", "constant", "exponential"]
Transform = Literal["clip", "square", "shift", "sigmoid"]
Fusion = Literal["early", "late"]
Dtype = Literal["float32", "bfloat16"]
SelectOn = Literal["validation", "held_out"]
Reported = Literal["validation", "test"]
ImportFormat = Literal["npy", "peft", "prompthub", "panda", "t5x"]
ExportFormat = Literal["npy", "peft"]

METHODS: tuple[str, ...] = get_args(Method)
RECIPES: tuple[str, ...] = get_args(Recipe)
INITIALISERS: tuple[str, ...] = get_args(Initialiser)
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)
SCHEDULES: tuple[str, ...] = get_args(Schedule)
TRANSFORMS: tuple[str, ...] = get_args(Transform)
IMPORTS: tuple[str, ...] = get_args(ImportFormat)
EXPORTS: tuple[str, ...] = get_args(ExportFormat)

# Setting -> what 0.1 called its values. They are accepted wherever one is given
# and in every file; ids and folders are made of them for good.
FORMER = {"method": {"finetune": "model"}, "recipe": {"kl": "ours"}}
_PRESENT = {
    setting: {old: new for new, old in names.items()}
    for setting, names in FORMER.items()
}


def present(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, or what a file says of a run, with this release's names."""
    return _renamed(settings, _PRESENT)


def former(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the names of 0.1, for ids and folders."""
    return _renamed(settings, FORMER)


def _renamed(
    settings: Mapping[str, Any], names: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    return {
        name: names[name].get(value, value)
        if name in names and isinstance(value, str)
        else value
        for name, value in settings.items()
    }


Value = TypeVar("Value")


class Registry(dict[str, Value]):
    """Name -> what it stands for; its own names are known before that.

    Users add entries as to any dict.

    Args:
      what: an entry is, for messages.
      *names: of the package's own entries.
    """

    def __init__(self, what: str, *names: str) -> None:
        super().__init__()
        self.what = what
        self.names = Names(self, names)

    def fill(self, entries: Mapping[str, Value]) -> None:
        """Adds the package's own entries, in the order of their names."""
        assert tuple(entries) == self.names.own, (
            f"panda_jax/config/registry.py names other {self.what}s: "
            f"{set(entries) ^ set(self.names.own)}"
        )
        self.update(entries)


class Names:
    """The names of a registry: its own, and those that users have added."""

    def __init__(self, registry: Registry[Any], own: tuple[str, ...]) -> None:
        self.own = own
        self._registry = registry

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.own, *self._registry]))

    def __len__(self) -> int:
        return len({*self.own, *self._registry})

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self._registry


# Of transferability; `measures` fills it.
METRICS: Registry[Any] = Registry(
    "metric", "panda", "e_avg", "on", "e_pairs", "e_concat", "d_concat",
    "d_avg", "logme", "h_score", "probe", "gradient", "first_steps",
)  # fmt: skip
