"""The errors that a user can cause, worded so that the user can mend them.

Everything that checks input at a boundary (a file, a flag, a name, a shape)
raises `UserError`.  The command line turns it into one message on stderr and
exit code 2; in Python it is a `ValueError` like any other.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator

# Characters of a message: what it quotes may be a whole file.
_MOST = 2000


class UserError(ValueError):
    """Something the user can mend: says what, got, expected and the fix."""

    def __init__(self, message: str) -> None:
        left = len(message) - _MOST
        if left > 0:
            begin, end = message[: _MOST // 2], message[-_MOST // 2 :]
            message = f"{begin} ... ({left} characters) ... {end}"
        super().__init__(message)


class StorageError(UserError):
    """Nothing can be written any more; no run could, whatever its settings."""


class InterruptedRun(Exception):  # noqa: N818
    """A run was asked to end, and has saved where it was."""


class UnusedSetting(RuntimeWarning):
    """Something was given that the method makes no use of."""


def unknown_name(what: str, got: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a table, with the nearest ones.

    Args:
      what: what the name stands for, e.g. `"task"`.
      got: the name as given.
      known: every name that would have been right.
    """
    known = sorted(known)
    near = nearest(got, known)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return UserError(
        f"Unknown {what} {got!r}.{hint} Known: {', '.join(known)}."
    )


@contextlib.contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Around imports of libraries that only an extra of the package brings.

    Args:
      extra: of pyproject.toml.
      what: cannot be done without them, as the subject of "needs".

    Raises:
      UserError: one is not installed.  One that is broken raises as it does.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what} needs {error.name!r}, which is not installed. Run: "
            f"pip install 'panda-jax[{extra}]'"
        ) from None


def nearest(got: object, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that look like `got`, likest first."""
    return difflib.get_close_matches(str(got), sorted(known), n=3, cutoff=0.5)


def first_line(error: BaseException) -> str:
    """What another's error says, on one line; its kind where it says nothing.

    Of a long line the beginning and the end: reasons stand in either.
    """
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= 500 else f"{line[:250]} ... {line[-250:]}"
