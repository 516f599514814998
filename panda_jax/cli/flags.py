"""Every verb's flags: what a command line says, and what `--help` shows.

This module must stay light (no JAX, no gin): `panda-jax --help` reads it.
"""

import argparse
import contextlib
import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from panda_jax import fields
from panda_jax.cli import arguments, logs
from panda_jax.config.runs import Run
from panda_jax.config.settings import USES
from panda_jax.errors import UserError, nearest
from panda_jax.fields import Group, IsPath, OneOf, Path, Setting

# What `--json` alone stands for where it may also name a file.
_STDOUT = "-"
# More of them stand in the text.
_MOST_CHOICES = 6
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


@dataclasses.dataclass(frozen=True)
class Repeated:
    """Marks a flag that may be given several times, and how it is written."""

    flag: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What a command line says: the flags of every verb, and the verb's own.

    Attributes:
      values: field -> value of the verb's own flags that were given.
      bindings: what stood behind `--gin.`, in order.
    """

    values: dict = dataclasses.field(default_factory=dict)
    bindings: tuple[str, ...] = ()
    gin_file: Annotated[
        tuple[str, ...],
        IsPath("FILE"),
        Repeated("gin_file"),
        Group.GIN,
        "A file of settings in gin's language; also looked for in the "
        "package's own gin folder (runs/smoke.gin). May be given several "
        "times: later files win, and flags over all.",
    ] = ()
    gin_search_paths: Annotated[
        Path, Group.GIN, "More folders to look for gin files in, with commas."
    ] = ""
    imports: Annotated[
        tuple[str, ...],
        Repeated("import"),
        Group.GIN,
        "A Python module of yours to import first, such as one that registers "
        "tasks or metrics; looked for in this folder too. May be given "
        "several times.",
    ] = ()
    json: Annotated[
        bool,
        Group.SHOWN,
        "Print one JSON document on stdout, and all else on stderr.",
    ] = False
    quiet: Annotated[
        bool,
        Group.SHOWN,
        "Show no progress; results, warnings and errors remain.",
    ] = False
    log_level: Annotated[
        str,
        OneOf(logs.LEVELS),
        Group.SHOWN,
        "From what severity on warnings and messages of libraries are shown, "
        "on stderr.",
    ] = logs.DEFAULT
    dry_run: Annotated[
        bool,
        Group.SHOWN,
        "Print the settings that hold, as a gin file, and do nothing else.",
    ] = False

    def __post_init__(self) -> None:
        fields.check(self)


def settings(verb: str) -> dict[str, Setting]:
    """All flags of a verb by the name of their field."""
    common = {n: s for n, s in fields.of(Given).items() if s.group}
    if verb not in arguments.JSON:
        del common["json"]
    return common | fields.of(arguments.VERBS[verb])


def parse(verb: str, argv: Sequence[str]) -> Given:
    """What a command line says behind its verb.

    Raises:
      UserError: a flag that the verb does not have, or a value of another
        type.
    """
    every, own = settings(verb), fields.of(arguments.VERBS[verb])
    words = [word for word in argv if not word.startswith("--gin.")]
    words = list(_truths(every, words))
    made = parser(verb)
    _check_known(verb, words, _spellings(made))
    found = vars(made.parse_args(words))
    said: dict[str, Any] = {}
    for name, setting in every.items():
        value = found[name]
        if isinstance(value, bool):
            said[name] = value is not name.startswith("no_")
        elif isinstance(value, list):
            said[name] = tuple(value)
        elif value is not None:
            said[name] = convert(setting, value)
    values = {name: said.pop(name) for name in own if name in said}
    if values.get("json") == _STDOUT:
        said["json"] = bool(values.pop("json"))
    prefix = "--gin."
    bound = (w.removeprefix(prefix) for w in argv if w.startswith(prefix))
    return Given(values=values, bindings=tuple(bound), **said)


def convert(setting: Setting, text: str) -> Any:
    """A flag's text as a value of its type.

    Raises:
      UserError: the text is no value of that type.
    """
    for value in _readings(text):
        if fields.fits(value, *setting.options):
            return value
    if {tuple, dict} & setting.kinds:
        return text  # Lists with commas, and JSON, are read by who has them.
    raise UserError(
        f"--{setting.name}={text}: expected a value of type {setting.words}."
    )


def _readings(text: str) -> Iterator[Any]:
    """What a text may stand for, itself last."""
    if text == "None":
        yield None
    for kind in (float, int):
        with contextlib.suppress(ValueError):
            yield kind(text)
    yield text


class _Whole(argparse.HelpFormatter):
    """argparse's, without breaks in names such as `minilm-l6`."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        words = " ".join(text.split())
        return textwrap.wrap(words, width, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    """argparse, with this program's way of reporting a mistake."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message[0].upper()}{message[1:]}. See --help.")


def parser(verb: str) -> argparse.ArgumentParser:
    """The verb's flags for argparse, in groups, with types and choices."""
    cls = arguments.VERBS[verb]
    placed = arguments.placed(cls)
    made = _Parser(
        prog=f"panda-jax {verb}",
        usage=" ".join(
            ["panda-jax", verb, *map(str.upper, placed), "[--FLAG=VALUE ...]"]
        ),
        description=(cls.__doc__ or "").splitlines()[0],
        epilog="--gin.NAME=VALUE binds any gin parameter or macro; the flags "
        f"of this verb are --gin.{arguments.gin_name(verb)}.FLAG there, whose "
        "texts need quotes.",
        allow_abbrev=False,
        add_help=False,
        formatter_class=_Whole,
    )
    titled: dict[str, Any] = {}
    for title, some in groups(settings(verb)).items():
        titled[title] = made.add_argument_group(title)
        for setting in some:
            _add(titled[title], cls, setting)
    last = titled[Group.SHOWN]
    last.add_argument(
        "--version", action="store_true", help="Print the version and end."
    )
    last.add_argument("--help", "-h", action="help", help="Print this and end.")
    return made


def groups(every: Mapping[str, Setting]) -> dict[str, list[Setting]]:
    """Title -> settings, as `--help` shows them."""
    found = {
        group: [s for s in every.values() if s.group is group]
        for group in (*Group, None)
    }
    return {g or "more flags": some for g, some in found.items() if some}


def metavar(setting: Setting) -> str:
    """What `--help` writes for a flag's value: its choices, or its type."""
    if len(setting.choices) > _MOST_CHOICES:
        return "NAME"
    if setting.choices:
        more = ",..." if tuple in setting.kinds else ""
        return f"{{{','.join(setting.choices)}}}{more}"
    for kind, word in ((int, "INT"), (float, "FLOAT"), (dict, "JSON")):
        if kind in setting.kinds:
            return word
    if tuple in setting.kinds:
        return "A,B,..."
    return setting.path.shown if setting.path else "TEXT"


def _add(group: Any, cls: type, setting: Setting) -> None:
    """One flag, or argument by place, of a group."""
    name, default, about = setting.name, setting.default, [setting.help]
    use = USES.get(name) if issubclass(cls, Run) else None
    if len(setting.choices) > _MOST_CHOICES:
        about.append(f"One of {', '.join(setting.choices)}.")
    if use is not None:
        about.append(f"Only with {use.where}.")
    if default is dataclasses.MISSING:
        about.append("(required)")
    elif isinstance(default, bool):
        # Who says nothing of `no_search` has it searched.
        about += ["(default: on)"] * (default is not name.startswith("no_"))
    elif default not in (None, "", ()):
        shown = default if isinstance(default, tuple) else (default,)
        about.append(f"(default: {','.join(map(str, shown))})")
    text = " ".join(about).strip().replace("%", "%%")
    if arguments.ByPlace() in setting.marks:
        # Optional to argparse: a gin file may bind it.
        group.add_argument(name, nargs="?", metavar=name.upper(), help=text)
    elif bool in setting.kinds:
        group.add_argument(
            f"--{name.removeprefix('no_')}",
            dest=name,
            action=argparse.BooleanOptionalAction,
            help=text,
        )
    elif repeated := [m for m in setting.marks if isinstance(m, Repeated)]:
        group.add_argument(
            f"--{repeated[0].flag}",
            dest=name,
            action="append",
            metavar=setting.path.shown if setting.path else "MODULE",
            help=text,
        )
    else:
        # A document's file, or stdout.
        alone = {"nargs": "?", "const": _STDOUT} if name == "json" else {}
        group.add_argument(
            f"--{name}", metavar=metavar(setting), help=text, **alone
        )


def _switches(every: Mapping[str, Setting]) -> dict[str, tuple[str, str]]:
    """Each spelling of a yes-or-no flag -> that for true, that for false."""
    found = {}
    for name, setting in every.items():
        if bool in setting.kinds:
            name = name.removeprefix("no_")
            yes, no = f"--{name}", f"--no-{name}"
            found[yes] = yes, no
            found[no] = found[f"--no_{name}"] = no, yes
    return found


def _truths(
    every: Mapping[str, Setting], words: Sequence[str]
) -> Iterator[str]:
    """`--flag=true`, `--flag true` and `--no_flag` as argparse takes them."""
    switches = _switches(every)
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name not in switches:
            yield word
            continue
        if not equals and left and left[0].lower() in _TRUTHS:
            equals, value = "=", left.pop(0)
        yes, no = switches[name]
        yield yes if not equals or truth(name, value) else no


def truth(flag: str, text: str) -> bool:
    """The value of a yes-or-no flag that is given one.

    Raises:
      UserError: it is neither true nor false.
    """
    if text.lower() not in _TRUTHS:
        raise UserError(
            f"{flag}={text}: expected true or false, or {flag} alone."
        )
    return _TRUTHS[text.lower()]


def _spellings(made: argparse.ArgumentParser) -> set[str]:
    """Every flag of a parser as a user may write it."""
    return {name for action in made._actions for name in action.option_strings}


def _check_known(verb: str, words: Sequence[str], known: set[str]) -> None:
    """Refuses a flag that is none, and names the one that was meant."""
    for word in words:
        name = word.partition("=")[0]
        number = name.lstrip("-.")[:1].isdecimal()
        if not name.strip("-") or not name.startswith("-") or number:
            continue
        if name in known or " " in name:
            continue
        others = [v for v in arguments.VERBS if name in _spellings(parser(v))]
        near = nearest(f"--{name.lstrip('-')}", known)[:1]
        hint = f" Did you mean {near[0]}?" if near else ""
        if others:
            hint = f" It is a flag of {', '.join(others)}."
        raise UserError(
            f"Unknown flag {name} of {verb}.{hint} See panda-jax help {verb}."
        )
