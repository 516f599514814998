"""A grid of runs, as settings.

This module must stay light (no JAX): `panda-jax --help` reads it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from panda_jax.errors import UserError, unknown_name
from panda_jax.files import parse_json
from panda_jax.runs import METHODS, RECIPES, Run, backbone_name, check_types
from panda_jax.tasks import specs

# Why a grid has a run.
ROLES = ("source", "prompt", "pot", "panda", "control", "model")
# What a grid is made of, so that no setting may say it.
AXES = ("task", "backbone", "method", "recipe", "seed")
_SETTINGS = [
    field.name for field in dataclasses.fields(Run) if field.name not in AXES
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Every source x target x seed by every method; also gin's `grid`.

    Lists are tuples, or text with commas; mappings are dicts, or JSON.

    Attributes:
      sources: tasks that a source prompt is trained on.
      targets: tasks that are transferred to, from every source.
      backbones: ids or folders.
      methods: of the targets' runs: prompt, pot, panda, model, and control
        (PANDA's settings with weight 0). What these need is made too.
      recipes: of panda: paper, released, ours.
      seeds: each makes the whole chain anew, its source prompts included.
      settings: of every run: what `train` takes, such as epochs.
      overrides: words -> settings of the runs that all words describe, those
        of more words win: {"panda": {...}, "source mnli": {...}}. Words are
        methods (control listens to panda's too), source, the tasks trained on,
        backbones, recipes.
      sweep: settings of panda, each with the values to try, in all
        combinations: {"kd_lambda": (0.3, 1.0)}.
    """

    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ("minilm-l6",)
    methods: tuple[str, ...] = ("prompt", "pot", "panda", "control", "model")
    recipes: tuple[str, ...] = ("paper",)
    seeds: tuple[int, ...] = (0,)
    settings: dict | None = None
    overrides: dict | None = None
    sweep: dict | None = None

    def __post_init__(self) -> None:
        for name in ("sources", "targets", "backbones", "methods", "recipes"):
            self._set(name, _listed(getattr(self, name)))
        self._set("seeds", _numbers(_listed(self.seeds)))
        for name in ("settings", "overrides", "sweep"):
            self._set(name, _mapping(name, getattr(self, name)))
        check_types(self)
        self._set(
            "backbones",
            tuple(
                backbone_name(name) if isinstance(name, str) else name
                for name in self.backbones
            ),
        )
        for name in ("sources", "targets", "backbones", "methods", "recipes"):
            _check_names(name, getattr(self, name), str)
        _check_names("seeds", self.seeds, int)
        self._check_lists()
        self._check_settings()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_lists(self) -> None:
        if not self.sources and not self.targets:
            raise UserError(
                "The grid has neither sources nor targets: give "
                "--sources=a,b and --targets=c,d, or a --gin_file."
            )
        for name in ("backbones", "recipes", "seeds"):
            if not getattr(self, name):
                raise UserError(f"The grid has no {name}: give at least one.")
        for task in (*self.sources, *self.targets):
            specs.of_registry(task)
        for what, values, known in (
            ("method", self.methods, (*METHODS, "control")),
            ("recipe", self.recipes, RECIPES),
        ):
            for value in values:
                if value not in known:
                    raise unknown_name(what, value, known)
        transfers = {"pot", "panda"} & set(self.methods)
        if self.targets and transfers and not self.sources:
            raise UserError(
                f"The methods {', '.join(sorted(transfers))} need sources: "
                "give --sources=a,b, or leave them out of --methods."
            )

    def _check_settings(self) -> None:
        _check_names_of("settings", self.settings or {})
        words = {*ROLES, *self.recipes, *self.backbones}
        words |= {*self.sources, *self.targets}
        for key, settings in (self.overrides or {}).items():
            if not isinstance(key, str) or not key.split():
                raise UserError(
                    f"overrides has the key {key!r}, expected words such as "
                    "'panda' or 'source mnli'; settings are those of all runs."
                )
            for word in words_of(key):
                if word not in words:
                    raise unknown_name("word in overrides", word, words)
            _check_names_of(f"overrides[{key!r}]", settings)
        _check_names_of("sweep", self.sweep or {})
        for name, values in (self.sweep or {}).items():
            if not isinstance(values, list | tuple) or not values:
                raise UserError(
                    f"sweep[{name!r}] is {values!r}, expected a tuple of the "
                    "values to try."
                )

    def settings_of(self, words: set[str]) -> dict[str, Any]:
        """The settings of a run that the words describe.

        Raises:
          UserError: overrides of as many words set the same thing otherwise.
        """
        said: dict[str, list[tuple[int, str, Any]]] = {}
        for key, settings in (self.overrides or {}).items():
            if set(words_of(key)) <= words:
                for name, value in settings.items():
                    each = len(words_of(key)), key, value
                    said.setdefault(name, []).append(each)
        found = dict(self.settings or {})
        for name, each in said.items():
            most = max(count for count, _, _ in each)
            (_, one, value), *others = (e for e in each if e[0] == most)
            for _, other, differing in others:
                if differing != value:
                    both = dict.fromkeys([*one.split(), *other.split()])
                    raise UserError(
                        f"overrides[{one!r}] and overrides[{other!r}] set "
                        f"{name} to {value!r} and {differing!r} for the same "
                        f"runs: say which in overrides[{' '.join(both)!r}]."
                    )
            found[name] = value
        return found


def _listed(value: Any) -> Any:
    """Text with commas, or a list, as a tuple; the rest as it is."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def words_of(key: str) -> list[str]:
    """The words of an override; a backbone as in the grid's list."""
    return [backbone_name(word) for word in key.split()]


def _numbers(values: Any) -> Any:
    """Texts of whole numbers as numbers; the rest as it is."""
    if not isinstance(values, tuple):
        return values
    return tuple(
        int(value)
        if isinstance(value, str) and value.removeprefix("-").isdecimal()
        else value
        for value in values
    )


def _mapping(name: str, value: Any) -> Any:
    """JSON as a dict; the rest as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError:
        raise UserError(
            f"{name} is {value!r}, expected JSON, such as '{{\"epochs\": 2}}'."
        ) from None


def _check_names(name: str, values: tuple[Any, ...], kind: type) -> None:
    for value in values:
        if type(value) is not kind:
            raise UserError(
                f"{name} holds {value!r}, expected values of type "
                f"{kind.__name__}."
            )
        if values.count(value) > 1:
            raise UserError(f"{name} holds {value!r} twice: name it once.")


def _check_names_of(where: str, settings: Any) -> None:
    """Refuses names that no run has, or that the grid's lists decide."""
    if not isinstance(settings, Mapping):
        raise UserError(f"{where} is {settings!r}, expected a dict.")
    for name in settings:
        if name in AXES:
            raise UserError(
                f"{where} sets {name!r}, which is one of the grid's lists: "
                f"give it in {name}s, or, for task, in sources and targets."
            )
        if name not in _SETTINGS:
            raise unknown_name(f"setting in {where}:", name, _SETTINGS)
