"""gin: files and bindings to a verb's arguments; what nobody reads is said.

With `doctor`, which looks for it, the only module that knows gin.
"""

import contextlib
import dataclasses
import os
import pathlib
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from panda_jax.cli import arguments, t5x_names
from panda_jax.cli.flags import Given
from panda_jax.errors import UserError, nearest
from panda_jax.tasks import own

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_OURS = "panda_jax."
_MACRO = "gin.macro"
# Verbs that T5X's names set something of.
_OF_T5X = ("train", "plan")
_registered: dict[str, Any] = {}

# What gin, and Python's tokenizer below it, raise for one bad text or another.
_GIN_ERRORS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)


def resolve(verb: str, given: Given) -> tuple[Any, str]:
    """The verb's arguments from gin files, bindings and flags.

    Later wins: gin files in order, `--gin.X=V`, then plain flags.

    Returns:
      The arguments, and the operative configuration as gin text.

    Raises:
      UserError: a setting that is wrong or missing, or a binding of the
        command line that nobody reads.
    """
    import gin

    _register(gin)
    _read(gin, verb, given)
    bound, cls = arguments.gin_name(verb), arguments.VERBS[verb]
    if verb == "plan":
        _adopt_train(gin, cls)
    for field in dataclasses.fields(cls):
        if field.name in given.values:
            value = given.values[field.name]
            gin.bind_parameter(f"{bound}.{field.name}", value)
        elif field.default is dataclasses.MISSING:
            if given.dry_run and field.name == "out_dir":
                _bind_unless_bound(gin, f"{bound}.out_dir", "OUT_DIR")
            if field.name == "task" and given.values.get("train_file"):
                name = own.name_of(given.values["train_file"])
                _bind_unless_bound(gin, f"{bound}.task", name)
            _require(gin, verb, field.name)
    try:
        args = _registered[f"{_OURS}{bound}"]()
    except UserError as error:
        # gin adds to the message which configurable it came from.
        raise UserError(str(error).split("\n  In call to")[0]) from None
    except (TypeError, RuntimeError) as error:
        raise UserError(
            f"The gin settings cannot be used: {' '.join(str(error).split())}. "
            "Check the macros (%NAME) and references (@NAME) in gin files and "
            "--gin flags."
        ) from None
    return args, gin.operative_config_str()


def _register(gin: Any) -> None:
    """Every verb and T5X's names, once a process."""
    for verb, cls in arguments.VERBS.items():
        name = arguments.gin_name(verb)
        if f"{_OURS}{name}" not in _registered:
            _registered[f"{_OURS}{name}"] = gin.external_configurable(
                cls, name=name, module=_OURS[:-1]
            )
    for name, function in t5x_names.CONFIGURABLES.items():
        if name not in _registered:
            _registered[name] = gin.external_configurable(function, name=name)


def _read(gin: Any, verb: str, given: Given) -> None:
    """Has gin read all files and bindings, and looks what the verb reads."""
    from gin import config as gin_config

    readers = _Readers(gin_config)

    @contextlib.contextmanager
    def opened(path: str) -> Iterator[Any]:
        # What it includes is looked for beside it first.
        searched.insert(0, os.path.dirname(os.path.abspath(path)))
        try:
            with open(path) as file:
                yield file
        finally:
            searched.pop(0)
        readers.note()

    # gin also takes runs/smoke.gin for a file of a Python package `runs`, and
    # fails where a folder of that name lies: files are all that is meant here.
    searched: Any = gin_config._LOCATION_PREFIXES
    file_readers: Any = gin_config._FILE_READERS
    file_readers[:] = [(opened, os.path.isfile)]
    for folder in (
        *filter(None, given.gin_search_paths.split(",")),
        _PACKAGE / "gin",
        _PACKAGE.parent / "gin",
        _PACKAGE.parent,
    ):
        gin.add_config_file_search_path(str(folder))
    gin.clear_config()
    typed = set()
    if given.bindings:
        # First the files, for what they import; then the bindings alone.
        _parse(gin, given.gin_file, ())
        gin.clear_config()
        _parse(gin, (), given.bindings)
        typed = readers.bound()
        gin.clear_config()
        readers.forget()
    _parse(gin, given.gin_file, ())
    for binding in given.bindings:
        _parse(gin, (), [binding])
        readers.note()
    if verb in _OF_T5X:
        adopted = t5x_names.adopted(gin.config_str(), given.bindings)
        _parse(gin, (), adopted)
        readers.note()
    readers.check(verb, typed)


def _parse(gin: Any, files: Sequence[str], bindings: Sequence[str]) -> None:
    try:
        for path in files:
            gin.parse_config_file(path)
        for binding in bindings:
            gin.parse_config(binding)
    except _GIN_ERRORS as error:
        message = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"The gin configuration is wrong: {message}. ({_hint(error)})"
        ) from None


def _hint(error: Exception) -> str:
    """What helps against one kind of gin's errors."""
    if isinstance(error, OSError):
        return (
            "Files are looked for beside the one that includes them, here, in "
            "--gin_search_paths and in the package's gin/."
        )
    if isinstance(error, ImportError):
        return "What gin imports must be importable: see PYTHONPATH."
    if isinstance(error, SyntaxError | tokenize.TokenError):
        return "Strings need quotes: --gin.train.task=\"'cb'\"."
    return "panda-jax VERB --help lists what can be set."


@dataclasses.dataclass(frozen=True, order=True)
class _Binding:
    """One parameter that gin was told; a macro's scope is its name."""

    scope: str
    owner: str
    parameter: str

    def __str__(self) -> str:
        """As one writes it."""
        if self.owner == _MACRO:
            return self.scope
        scope = f"{self.scope}/" if self.scope else ""
        return f"{scope}{self.owner.removeprefix(_OURS)}.{self.parameter}"


class _Readers:
    """Which verb reads which binding.

    A verb reads its own parameters, and what their values refer to (%NAME,
    @NAME). So are those read that a later binding replaced: to replace a value
    is to have read it.

    Args:
      gin_config: gin's module of that name.
    """

    def __init__(self, gin_config: Any) -> None:
        self._gin = gin_config
        # (scope, owner) -> the (scope, owner) that its values refer to.
        self._refers: dict[tuple[str, str], set[tuple[str, str]]] = {}

    def bound(self) -> set[_Binding]:
        """What is bound now."""
        return {
            _Binding(scope, owner, parameter)
            for (scope, owner), values in self._gin._CONFIG.items()
            for parameter in values
        }

    def note(self) -> None:
        """Adds what refers to what now; to be called after each file."""
        for node, values in self._gin._CONFIG.items():
            found = self._gin.iterate_references(values)
            said = self._refers.setdefault(node, set())
            said.update(reference.config_key for reference in found)

    def forget(self) -> None:
        """Begins anew."""
        self._refers.clear()

    def _reached(self, verb: str) -> set[tuple[str, str]]:
        """The (scope, owner) that are called for a verb's arguments."""
        roots = {("", f"{_OURS}{arguments.gin_name(verb)}")}
        if verb == "plan":
            roots.add(("", f"{_OURS}train"))
        # Functions of a user's own modules read theirs when they are called.
        known = {*_registered, _MACRO}
        roots |= {node for node in self._refers if node[1] not in known}
        reached: set[tuple[str, str]] = set()
        while roots:
            scope, owner = node = roots.pop()
            reached.add(node)
            for (within, other), found in self._refers.items():
                if other == owner and _encloses(within, scope):
                    roots |= found - reached
        return reached

    def read_by(self, verb: str, binding: _Binding) -> bool:
        """Whether a verb's arguments depend on a binding."""
        if verb in _OF_T5X and _of_t5x(binding):
            return True  # Some mean nothing here, and are known to.
        return any(
            owner == binding.owner and _encloses(binding.scope, scope)
            for scope, owner in self._reached(verb)
        )

    def check(self, verb: str, typed: set[_Binding]) -> None:
        """Refuses what nobody reads of the bindings of the command line.

        A file may serve several verbs: what one of them does not read there
        is a warning.

        Args:
          verb: whose arguments they are for.
          typed: the bindings of the command line.
        """
        unread = [b for b in sorted(self.bound()) if not self.read_by(verb, b)]
        if verb == "plan":
            # A file of `train` is one of `plan`, also where it says more.
            train, cls = f"{_OURS}train", arguments.Plan
            own = {field.name for field in dataclasses.fields(cls)}
            unread += [
                b for b in typed if b.owner == train and b.parameter not in own
            ]
        for binding in unread:
            if binding in typed:
                raise UserError(f"--gin.{self._about(verb, binding)}")
        if unread:
            each = " ".join(self._about(verb, b) for b in unread[:3])
            more = f" ({len(unread) - 3} more.)" if unread[3:] else ""
            warnings.warn(
                f"{verb} does not use all that the gin files say: {each}{more}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _about(self, verb: str, binding: _Binding) -> str:
        """Who reads a binding that a verb does not, and what was meant."""
        name = str(binding)
        if name in map(arguments.gin_name, arguments.VERBS):
            return f"{name} is a verb, no setting: bind {name}.SETTING=VALUE."
        others = [
            other
            for other in arguments.VERBS
            if other != verb and self.read_by(other, binding)
        ]
        if others:
            words = f"{name} is read by {', '.join(others)}, not by {verb}."
            if verb == "grid" and name.startswith("train."):
                words += (
                    " A grid's runs have their settings from --settings="
                    f"'{{\"{binding.parameter}\": ...}}'."
                )
        else:
            words = f"{name} is read by no verb."
        for near in nearest(name, _names(verb))[:1]:
            return f"{words} Did you mean {near}?"
        for other in () if others else arguments.VERBS:
            for near in nearest(name, _names(other))[:1]:
                return f"{words} Did you mean {near}, read by {other}?"
        return words


def _of_t5x(binding: _Binding) -> bool:
    """Whether T5X's names say what a binding sets."""
    macro = binding.owner == _MACRO
    return (binding.scope if macro else binding.owner) in t5x_names.BINDINGS


def _encloses(scope: str, inner: str) -> bool:
    """Whether what is bound in one scope holds in the other."""
    return not scope or f"{inner}/".startswith(f"{scope}/")


def _names(verb: str) -> list[str]:
    """What one may bind for a verb."""
    own, cls = arguments.gin_name(verb), arguments.VERBS[verb]
    names = [f"{own}.{field.name}" for field in dataclasses.fields(cls)]
    return [*names, *t5x_names.BINDINGS] if verb in _OF_T5X else names


def _adopt_train(gin: Any, cls: type) -> None:
    """A gin file of `train` is one of `plan`, where it says nothing else."""
    for field in dataclasses.fields(cls):
        for verb in ("plan", "train"):
            try:
                value = gin.query_parameter(f"{verb}.{field.name}")
            except ValueError:
                continue
            if "gin.REQUIRED" not in str(value):
                gin.bind_parameter(f"plan.{field.name}", value)
            break


def _bind_unless_bound(gin: Any, name: str, value: str) -> None:
    """For what a dry run has no use for."""
    try:
        gin.query_parameter(name)
    except ValueError:
        gin.bind_parameter(name, value)


def _require(gin: Any, verb: str, name: str) -> None:
    try:
        value = gin.query_parameter(f"{arguments.gin_name(verb)}.{name}")
    except ValueError:
        value = None
    if value is None or "gin.REQUIRED" in str(value):
        placed = name in arguments.placed(arguments.VERBS[verb])
        flag = name.upper() if placed else f"--{name}=..."
        raise UserError(f"The verb {verb} needs {flag} See --help.")
