"""Every verb's flags: what a command line says, and what `--help` shows.

This module must stay light (no JAX, no gin): `panda-jax --help` reads it.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from panda_jax import runs, settings
from panda_jax.cli import arguments, logs
from panda_jax.errors import UserError, nearest

# What `--json` alone stands for where it may also name a file.
_STDOUT = "-"
_TRUTHS = ("true", "false", "1", "0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What a command line says.

    Attributes:
      values: field -> value of the flags that were given.
      bindings: what stood behind `--gin.`, in order.
      gin_file: gin files, in order.
      gin_search_paths: folders with commas.
      imports: modules to import first.
      dry_run: print the operative configuration and do nothing else.
      json: one JSON document on stdout.
      quiet: no progress.
      log_level: the least that libraries must have to say.
    """

    values: dict[str, Any]
    bindings: tuple[str, ...] = ()
    gin_file: tuple[str, ...] = ()
    gin_search_paths: str = ""
    imports: tuple[str, ...] = ()
    dry_run: bool = False
    json: bool = False
    quiet: bool = False
    log_level: str = logs.DEFAULT


def parse(verb: str, argv: Sequence[str]) -> Given:
    """What a command line says behind its verb.

    Raises:
      UserError: a flag that the verb does not have, or a value of another
        type.
    """
    cls = arguments.VERBS[verb]
    words = [word for word in argv if not word.startswith("--gin.")]
    words = list(_truths(cls, words))
    made = parser(verb)
    _check_known(verb, words, _spellings(made))
    found = vars(made.parse_args(words))
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        text = found.pop(field.name)
        if isinstance(text, bool):
            inverted = field.name.startswith("no_")
            values[field.name] = text is not inverted
        elif text is not None:
            values[field.name] = arguments.convert(cls, field.name, text)
    if values.get("json") == _STDOUT:
        found["json"] = bool(values.pop("json"))
    del found["version"]
    for name in ("gin_file", "imports"):
        found[name] = tuple(found[name])
    return Given(
        values=values,
        bindings=tuple(
            word.removeprefix("--gin.")
            for word in argv
            if word.startswith("--gin.")
        ),
        **found,
    )


class _Parser(argparse.ArgumentParser):
    """argparse, with this program's way of reporting a mistake."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message[0].upper()}{message[1:]}. See --help.")


def parser(verb: str) -> argparse.ArgumentParser:
    """The verb's flags for argparse, in groups, with types and choices."""
    cls = arguments.VERBS[verb]
    placed = arguments.PLACED.get(cls, ())
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
    )
    about = arguments.settings_help(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for title, names in arguments.groups(cls).items():
        group = made.add_argument_group(title)
        for name in names:
            _add(group, cls, fields[name], about.get(name, ""))
    _add_common(made, verb)
    return made


def _add(
    group: Any, cls: type, field: dataclasses.Field[Any], about: str
) -> None:
    """One flag, or argument by place, of a group."""
    default = field.default
    use = settings.USES.get(field.name)
    if use is not None and issubclass(cls, runs.Run):
        about = f"{about} Serves {use.who}."
    if default is dataclasses.MISSING:
        about = f"{about} (required)"
    elif default is not None:
        about = f"{about} (default: {default})"
    text = about.strip().replace("%", "%%")
    if field.name in arguments.PLACED.get(cls, ()):
        # Optional to argparse: a gin file may bind it.
        group.add_argument(
            field.name, nargs="?", metavar=field.name.upper(), help=text
        )
    elif "bool" in arguments.kinds(field):
        group.add_argument(
            f"--{field.name.removeprefix('no_')}",
            dest=field.name,
            action=argparse.BooleanOptionalAction,
            help=text,
        )
    else:
        alone = {"nargs": "?", "const": _STDOUT} if field.name == "json" else {}
        group.add_argument(
            f"--{field.name}",
            metavar=arguments.metavar(cls, field),
            help=text,
            **alone,
        )


def _add_common(made: argparse.ArgumentParser, verb: str) -> None:
    """The flags that every verb has, and `--json` where it has one."""
    cls = arguments.VERBS[verb]
    files = made.add_argument_group("gin files and your own code")
    files.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="gin file; may be given several times, later ones win; also "
        "looked up in the package's own gin folder",
    )
    files.add_argument(
        "--gin_search_paths",
        default="",
        metavar="PATH,...",
        help="more folders to look gin files up in",
    )
    files.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="a Python module of yours to import first, such as one that "
        "registers tasks or metrics; looked for in this folder too; may be "
        "given several times",
    )
    shown = made.add_argument_group("what is shown")
    if verb in arguments.JSON and not hasattr(cls, "json"):
        shown.add_argument(
            "--json",
            action="store_true",
            help="print one JSON document on stdout, and all else on stderr",
        )
    shown.add_argument(
        "--quiet",
        action="store_true",
        help="show no progress; results, warnings and errors remain",
    )
    shown.add_argument(
        "--log_level",
        choices=tuple(logs.LEVELS),
        default=logs.DEFAULT,
        help="from what severity on messages of libraries and warnings are "
        "shown, on stderr (default: %(default)s)",
    )
    shown.add_argument(
        "--dry_run",
        action="store_true",
        help="print the operative configuration and do nothing else",
    )
    shown.add_argument(
        "--version", action="store_true", help="print the version"
    )
    shown.add_argument("--help", "-h", action="help", help="print this")


def _switches(cls: type) -> dict[str, tuple[str, str]]:
    """Each spelling of a yes-or-no flag -> that for true, that for false."""
    found = {}
    for field in dataclasses.fields(cls):
        if "bool" in arguments.kinds(field):
            name = field.name.removeprefix("no_")
            yes, no = f"--{name}", f"--no-{name}"
            found[yes] = yes, no
            found[no] = found[f"--no_{name}"] = no, yes
    return found


def _truths(cls: type, words: Sequence[str]) -> Iterator[str]:
    """`--flag=true`, `--flag true` and `--no_flag` as argparse takes them."""
    switches = _switches(cls)
    common = {f"--{name}" for name in ("dry_run", "quiet", "json")}
    if hasattr(cls, "json"):
        common.remove("--json")  # There its value is a file.
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name not in switches and name not in common:
            yield word
            continue
        if not equals and left and left[0].lower() in _TRUTHS:
            equals, value = "=", left.pop(0)
        truth = not equals or arguments.truth(name, value)
        if name in switches:
            yes, no = switches[name]
            yield yes if truth else no
        elif truth:
            yield name


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
