"""Settings are dataclasses whose annotations say all that there is to say.

    steps: Annotated[int | None, Group.TRAINING, "Updates of the run."] = None

The type, the choices (`Literal`, or `OneOf` where users may add some), whether
a text is a path, what `--help` says and where: every check and the command
line read it there. No JAX here: `--help` reads it.
"""

import dataclasses
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Collection
from typing import Annotated, Any, Literal

from panda_jax.errors import UserError, unknown_name


class Group(enum.StrEnum):
    """The titles of `--help`, in their order."""

    MACHINE = "the machine that it is compiled for"
    RUN = "what is trained"
    RUNS = "which runs are made"
    INPUT = "what is read"
    PROMPT = "the prompt"
    SOURCES = "source prompts"
    DISTILLATION = "distillation (method panda)"
    DATA = "data"
    TRAINING = "optimisation"
    EVALUATION = "evaluation"
    METRICS = "settings of single metrics"
    STATISTICS = "statistics"
    WORK = "how the work is shared out"
    DEVICES = "devices and memory"
    PROCESSES = "several processes that train one run"
    OUTPUT = "output"
    GIN = "gin files and your own code"
    SHOWN = "what is shown"


@dataclasses.dataclass(frozen=True)
class IsPath:
    """Marks a text, several with commas, or a tuple, as paths.

    Attributes:
      shown: what stands for it in `--help`.
      urls: whether what reads it knows buckets too.
    """

    shown: str = "PATH"
    urls: bool = False


Path = Annotated[str, IsPath()]
File = Annotated[str, IsPath("FILE")]
PathOrUrl = Annotated[str, IsPath(urls=True)]
# Or a name of the zoo's.
BackboneName = Annotated[str, IsPath("ID")]


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Marks a text as one of names that may grow while a program runs."""

    names: Collection[str]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of a dataclass of settings.

    Attributes:
      name: of the field.
      default: `dataclasses.MISSING` where one must be given.
      options: the types that a value may have, without their marks.
      marks: what `Annotated` adds to them.
    """

    name: str
    default: Any
    options: tuple[Any, ...]
    marks: tuple[Any, ...]

    @property
    def help(self) -> str:
        """What `--help` says: sentences that stand alone."""
        return self._mark(str) or ""

    @property
    def group(self) -> Group | None:
        """The title that it stands under."""
        return self._mark(Group)

    @property
    def path(self) -> IsPath | None:
        """Whether, and how, it names files."""
        return self._mark(IsPath)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it may have, but for None; () for any."""
        names = self._mark(OneOf)
        found = [] if names is None else list(names.names)
        for option in self.options:
            if typing.get_origin(option) is Literal:
                found += typing.get_args(option)
        return tuple(found)

    @property
    def kinds(self) -> set[Any]:
        """Its types, containers without what they hold."""
        return {typing.get_origin(option) or option for option in self.options}

    @property
    def words(self) -> str:
        """Its types, for people."""
        return " | ".join(map(_word, self.options))

    def _mark(self, kind: type) -> Any:
        return next((m for m in self.marks if type(m) is kind), None)


@functools.cache
def of(cls: type) -> dict[str, Setting]:
    """Name -> setting of a dataclass, a class's own before its bases'."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    own = [name for base in cls.__mro__ for name in _annotated(base)]
    return {
        name: Setting(name, fields[name].default, *_split(hints[name]))
        for name in dict.fromkeys(own)
        if name in fields
    }


def _annotated(cls: type) -> list[str]:
    return list(cls.__dict__.get("__annotations__", {}))


def _split(hint: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The types that a hint allows, and the marks on any of them."""
    marks: tuple[Any, ...] = ()
    if typing.get_origin(hint) is Annotated:
        hint, *rest = typing.get_args(hint)
        marks = tuple(rest)
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return (hint,), marks
    options: tuple[Any, ...] = ()
    for part in typing.get_args(hint):
        more, others = _split(part)
        options, marks = options + more, marks + others
    return options, marks


def _word(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return "str"
    if isinstance(option, type) and not typing.get_args(option):
        return option.__name__.removesuffix("Type")
    return str(option)


def fits(value: Any, *options: Any) -> bool:
    """Whether a value is of one of the types: the one check of types.

    A whole number is a float where a float can hold it. What a list or a dict
    holds is looked at; what a tuple holds is checked where it is used, by name.

    Args:
      value: of a file, a flag or a caller.
      *options: such as `int`, `list[int]`, `dict[str, float] | None`.
    """
    return any(_fits(value, option) for option in options)


def _fits(value: Any, option: Any) -> bool:
    origin, inner = typing.get_origin(option), typing.get_args(option)
    if origin in (Annotated, typing.Union, types.UnionType):
        return fits(value, *_split(option)[0])
    if origin is Literal:
        return type(value) is str
    if option is Any:
        return True
    if origin is list:
        return type(value) is list and all(_fits(x, inner[0]) for x in value)
    if origin is dict:
        return type(value) is dict and all(
            _fits(item, inner[1]) for item in value.values()
        )
    if option is float and type(value) is int:
        return abs(value) < 2**53
    return type(value) is (origin or option)


def check(values: Any) -> None:
    """Holds each field of a dataclass of settings against its annotation.

    An int where a float is expected becomes one, so that 1 and 1.0 are the
    same run.

    Raises:
      UserError: a value of another type, none of its choices, a NaN, an
        infinity, or a URL for a path.
    """
    for name, setting in of(type(values)).items():
        value = getattr(values, name)
        if type(value) is object:  # gin.REQUIRED
            raise UserError(
                f"{name} is not set: a gin file asks for it. Bind the "
                f"file's macro (--gin.NAME=VALUE) or give --{name}=..."
            )
        if type(value) is int and float in setting.options:
            try:
                value = float(value)
            except OverflowError:  # Python's ints have no end
                value = math.inf
            object.__setattr__(values, name, value)
        if not fits(value, *setting.options):
            raise UserError(
                f"{name} is {value!r}, expected a value of type "
                f"{setting.words}."
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} is {value}, expected a finite number.")
        choices = setting.choices
        if choices and isinstance(value, str) and value not in choices:
            raise unknown_name(name, value, choices)
        if setting.path is not None and not setting.path.urls:
            _check_path(name, value)


def _check_path(name: str, value: Any) -> None:
    """A bucket's URL would silently become a folder named `gs:`."""
    parts = value if isinstance(value, tuple) else str(value).split(",")
    if any(re.match(r"\s*\w+://", str(part)) for part in parts):
        raise UserError(
            f"{name} is {value!r}, expected a path: files are read and "
            "written here, not URLs. Mount the bucket, e.g. with gcsfuse "
            "(launch/mount.sh), and give the path below its folder."
        )
