"""Every error that the user may see: where it is made, and what provokes it.

`tests/errors.json` says which test provokes which. A run of all tests with
`PANDA_ERRORS=FILE` notes in FILE what each provokes, and

    python tests/error_sites.py FILE

brings the table up to date: an entry whose test provokes it still stays.
"""

import ast
import functools
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import panda_jax
from panda_jax import errors

PACKAGE = pathlib.Path(panda_jax.__file__).resolve().parent
ROOT = PACKAGE.parent
TABLE = pathlib.Path(__file__).resolve().parent / "errors.json"
FOLDERS = ("panda_jax", "tasks", "launch")
# What makes an error, and, of functions, how many frames are between.
_CLASSES = ("UserError", "StorageError", "InterruptedRun")
_MAKERS = ("unknown_name", "fault", "no_rows", "_damaged", "_missing")
UNPROVOKED = "not provoked: "


class Site(NamedTuple):
    """A place that makes an error.

    Attributes:
      file: below the checkout.
      line: where the call begins.
      where: module and function.
      message: with `{}` for what differs.
    """

    file: str
    line: int
    where: str
    message: str


@functools.cache
def sites() -> tuple[Site, ...]:
    """All of them; messages that are the same in a function are numbered."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            found += _of_file(path)
    return tuple(found)


def _of_file(path: pathlib.Path) -> Iterator[Site]:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    name = name.removesuffix(".__init__")
    seen: dict[tuple[str, str], int] = {}
    for where, function, call in _calls(ast.parse(path.read_text()), name):
        message = _message(call, function)
        number = seen[where, message] = seen.get((where, message), 0) + 1
        if number > 1:
            message += f" ({number})"
        file = path.relative_to(ROOT).as_posix()
        yield Site(file, call.lineno, where, message)


def _calls(
    node: ast.AST, where: str, function: ast.AST | None = None
) -> Iterator[tuple[str, ast.AST | None, ast.Call]]:
    """Calls that make errors, but for those inside of makers."""
    for child in ast.iter_child_nodes(node):
        inner, scope = where, function
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            if child.name in _MAKERS:
                continue
            inner = f"{where}.{child.name}"
        if isinstance(child, ast.FunctionDef):
            scope = child
        if isinstance(child, ast.Call) and _called(child) in (
            *_CLASSES,
            *_MAKERS,
        ):
            yield where, function, child
        yield from _calls(child, inner, scope)


def _called(call: ast.Call) -> str:
    target = call.func
    if isinstance(target, ast.Attribute):
        return target.attr
    return target.id if isinstance(target, ast.Name) else ""


def _message(call: ast.Call, function: ast.AST | None) -> str:
    made, given = _called(call), call.args
    if made in _CLASSES:
        return _text(given[0], function)
    if made == "unknown_name":
        return f"Unknown {_text(given[0], function)}"
    if made == "fault":
        field, _, expected = (_text(each, function) for each in given)
        return f"field {field}: expected {expected}"
    return f"{made.strip('_')}: " + ", ".join(
        _text(each, function) for each in given
    )


def _text(node: ast.AST, function: ast.AST | None) -> str:
    """The words of an expression, `{}` for what is only known when it runs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, None) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left, function) + _text(node.right, function)
    if isinstance(node, ast.Name) and function is not None:
        # Words that have a name: the last that it was given before.
        given = [
            each.value
            for each in ast.walk(function)
            if isinstance(each, ast.Assign)
            and each.lineno < node.lineno
            and any(
                isinstance(t, ast.Name) and t.id == node.id
                for t in each.targets
            )
        ]
        if given and isinstance(given[-1], ast.Constant | ast.JoinedStr):
            return _text(given[-1], None)
    return "{}"


def record(path: str) -> None:
    """Notes from now on, a line each, which test makes an error where.

    Several processes may write to one file: lines are short and appended.
    """
    known = {(str(ROOT / site.file), site.line): site for site in sites()}
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    seen: set[tuple[Site, str]] = set()

    def noted(kind: type[BaseException]) -> None:
        made = kind.__init__

        def init(self: BaseException, *given: Any) -> None:
            made(self, *given)
            frame = sys._getframe(1)
            while frame is not None and frame.f_code.co_name in _MAKERS:
                frame = frame.f_back
            test = os.environ.get("PYTEST_CURRENT_TEST", "")
            test = test.partition("[")[0].partition(" (")[0]
            if frame is None or not test:
                return
            place = os.path.realpath(frame.f_code.co_filename)
            site = known.get((place, frame.f_lineno))
            if site is not None and (site, test) not in seen:
                seen.add((site, test))
                line = json.dumps([site.where, site.message, test])
                os.write(file, f"{line}\n".encode())

        kind.__init__ = init  # pyright: ignore

    noted(errors.UserError)
    noted(errors.InterruptedRun)


def table() -> dict[str, dict[str, str]]:
    """Module and function -> message -> the test, or why there is none."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def update(path: str) -> list[Site]:
    """Writes the table anew from what was noted.

    Returns:
      The places that no test provokes and that have no reason.
    """
    tests: dict[tuple[str, str], set[str]] = {}
    for line in pathlib.Path(path).read_text().splitlines():
        where, message, test = json.loads(line)
        tests.setdefault((where, message), set()).add(
            test.removeprefix("tests/")
        )
    former, made, open_ = table(), {}, []
    for site in sites():
        found = tests.get((site.where, site.message), set())
        known = former.get(site.where, {}).get(site.message, "")
        if found and known not in found:
            # What is fuzzed is provoked by chance.
            known = min(found, key=lambda t: ("fuzzing" in t, len(t), t))
        elif not known.startswith(UNPROVOKED) and not found:
            known = UNPROVOKED
            open_.append(site)
        made.setdefault(site.where, {})[site.message] = known
    text = json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False)
    TABLE.write_text(text + "\n")
    return open_


if __name__ == "__main__":
    for site in update(sys.argv[1]):
        print(f"{site.file}:{site.line}: {site.where}: {site.message}")
