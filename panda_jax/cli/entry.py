"""The program `panda-jax`: from its words to a verb, and to an exit status.

Plain flags are sugar over gin bindings: `--epochs=5` is
`--gin.train.epochs=5`.
"""

import contextlib
import dataclasses
import errno
import importlib
import importlib.metadata
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from panda_jax.cli import arguments, bindings, flags, logs, verbs
from panda_jax.config import runs, settings
from panda_jax.errors import (
    InterruptedRun,
    UserError,
    first_line,
    unknown_name,
)
from panda_jax.parallel import distributed


def _overview() -> str:
    lines = [
        "usage: panda-jax VERB [--FLAG=VALUE ...]",
        "       panda-jax help VERB",
        "       panda-jax --version",
        "",
        "Prompt transfer for frozen language models, in JAX.",
        "",
    ]
    for verb, cls in arguments.VERBS.items():
        lines.append(f"  {verb:16s} {(cls.__doc__ or '').splitlines()[0]}")
    lines += ["", "panda-jax help VERB (or VERB --help) shows a verb's flags."]
    return "\n".join(lines)


def resolve(verb: str, argv: Sequence[str]) -> tuple[Any, str, flags.Given]:
    """The verb's arguments from gin files, bindings and flags.

    What libraries say is shown from here on, and the modules that the user
    names are imported.

    Returns:
      The arguments, the operative configuration as gin text, and what the
      command line says.
    """
    given = flags.parse(verb, argv)
    logs.show(given.log_level)
    for name in given.imports:
        _import_module(name)
    args, config = bindings.resolve(verb, given)
    if verb in ("train", "plan"):
        args = _of_use(args, given)
    return args, config, given


def _of_use(args: Any, given: flags.Given) -> Any:
    """The settings of a run without what its gin files give in vain.

    A file may serve several methods. What the command line gives in vain is
    refused.
    """
    values = {name: getattr(args, name) for name in runs.DEFAULTS}
    several = getattr(args, "sources", None) is not None
    idle = settings.unused(values, runs.DEFAULTS, several=several)
    names = [text.partition("=")[0].strip() for text in given.bindings]
    typed = {*given.values, *(name.rpartition(".")[2] for name in names)}
    of_files = {name: why for name, why in idle.items() if name not in typed}
    for name, why in of_files.items():
        warnings.warn(
            f"A gin file sets {name} to {values[name]!r}: {why}.",
            RuntimeWarning,
            stacklevel=1,
        )
    args = dataclasses.replace(
        args, **{name: runs.DEFAULTS[name] for name in of_files}
    )
    with contextlib.nullcontext() if given.dry_run else verbs.nothing_in_vain():
        runs.left_out(args, several=several)
    return args


def _import_module(name: str) -> None:
    """Imports a module of the user's; from this folder too, if need be."""
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.append(os.getcwd())  # Last, so that it hides no other module.
    try:
        importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--import={name} failed: {type(error).__name__}: "
            f"{first_line(error).rstrip('.')}. Give the name of a module that "
            "Python can import: one in this folder, on PYTHONPATH, or "
            "installed."
        ) from error


def _version() -> str:
    try:
        return f"panda-jax {importlib.metadata.version('panda-jax')}"
    except importlib.metadata.PackageNotFoundError:
        return "panda-jax (not installed)"


def _execute(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        for verb in argv[1:]:
            _check_verb(verb)
        pages = [flags.parser(verb).format_help() for verb in argv[1:]]
        print("\n".join(pages).rstrip() or _overview())
        return 0
    if "--version" in argv:
        print(_version())
        return 0
    verb, *rest = argv
    _check_verb(verb)
    for word in rest:
        try:
            word.encode()
        except UnicodeEncodeError:
            # How Python gives bytes that are no text; no JSON could hold them.
            raise UserError(
                f"Got the argument {word!r}, expected UTF-8 text. Rename what "
                "it names."
            ) from None
    args, config, given = resolve(verb, rest)
    output = verbs.Output(given.json, given.quiet, sys.stdout)
    with contextlib.ExitStack() as stack:
        if given.json:
            # Whatever else prints must not stand beside the document.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if given.log_level == "error":
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        if given.dry_run:
            return _dry_run(verb, args, config, output)
        return verbs.VERBS[verb](args, output)


def _check_verb(verb: str) -> None:
    if verb.startswith("-"):
        raise UserError(
            f"Got the flag {verb} first, expected a verb: panda-jax VERB "
            f"{verb}. See panda-jax help."
        )
    if verb not in arguments.VERBS:
        raise unknown_name("verb", verb, arguments.VERBS)


def _dry_run(verb: str, args: Any, config: str, output: verbs.Output) -> int:
    """What would be done: the settings, and a grid's runs."""
    text = config.strip()
    if verb == "grid":
        from panda_jax.experiments.grid.grid import listing

        text += f"\n{listing(args)}"
    document = {"verb": verb, "settings": dataclasses.asdict(args)}
    output.give({**document, "text": text}, text)
    return 0


def _keep_compiled() -> None:
    """What one run compiled, the next one finds on disk."""
    from panda_jax.io.files import cache_folder

    folder = str(cache_folder() / "compiled")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
    # JAX keeps what took a second; the twenty small programs of a start take
    # as long together.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _plain_warnings() -> None:
    """Warnings as one line for people, without our source line."""
    usual = warnings.formatwarning

    def line(message: Any, category: type[Warning], *place: Any) -> str:
        if issubclass(category, RuntimeWarning):
            return f"panda-jax: warning: {message}\n"
        return usual(message, category, *place)

    warnings.formatwarning = line


def program() -> NoReturn:
    """The command `panda-jax`: `main`, and the end of the process.

    One that a signal ended leaves at once, for there may be threads of writers
    and compilers: Python's own end takes them out of C++ that does not allow
    it, and aborts (CPython before 3.14).
    """
    status = main()
    if status > 128:
        distributed.end_at_once(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb. Returns 0 done, 2 the user's mistake; raises on ours.

    One of several processes that fails ends here, so that the others end too.
    """
    try:
        status = _main(argv)
    except Exception as error:
        words = distributed.explain(error)
        if words is not None:
            traceback.print_exc()
            print(f"panda-jax: {words}", file=sys.stderr)
            distributed.leave(1)
        raise
    if status:
        distributed.leave(status)
    return status


def _main(argv: Sequence[str] | None) -> int:
    _plain_warnings()
    _keep_compiled()
    try:
        return _execute(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"panda-jax: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (head, less) has gone; that is no mistake.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        distributed.leave(1)  # The others cannot go on without this one.
        return 0
    except InterruptedRun as stopped:
        print(f"panda-jax: {stopped}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        given = sys.argv[1:] if argv is None else argv
        left = "what was complete is kept, and nothing else was written"
        if given and given[0] in _RESUMED:
            left = "the same command goes on from the last checkpoint"
        print(f"panda-jax: interrupted; {left}.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in _USERS_ERRNOS:
            raise
        print(
            f"panda-jax: {error.strerror}: {error.filename or 'a file'}. "
            "Nothing that was complete is lost; mend it and run the same "
            "command again.",
            file=sys.stderr,
        )
        return 2


# Verbs that go on where they were.
_RESUMED = ("demo", "train", "grid")
_USERS_ERRNOS = (
    errno.ENOSPC,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
)
