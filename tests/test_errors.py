"""The table of errors is that of the source, and names tests that there are."""

import ast
import json
import pathlib

import error_sites
import pytest

from panda_jax.errors import (
    InterruptedRun,
    StorageError,
    UserError,
    needs_extra,
    unknown_name,
)

HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, str]]:
    if not (error_sites.ROOT / "launch").is_dir():
        pytest.skip("installed without the checkout")
    return error_sites.table()


def test_every_error_is_in_the_table_and_no_other(table):
    """Else: run the tests with PANDA_ERRORS=FILE and tests/error_sites.py."""
    source = {(site.where, site.message) for site in error_sites.sites()}
    listed = {(where, text) for where in table for text in table[where]}
    assert source - listed == set(), "made and not listed"
    assert listed - source == set(), "listed and no longer made"
    assert len(source) == len(error_sites.sites()) > 350


def test_the_tests_that_it_names_are_there(table):
    known = set()
    for path in HERE.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                name = path.relative_to(HERE).as_posix()
                known.add(f"{name}::{node.name}")
    for where, messages in table.items():
        for message, test in messages.items():
            if test.startswith(error_sites.UNPROVOKED):
                reason = test.removeprefix(error_sites.UNPROVOKED)
                assert len(reason) > 10, f"no reason: {where}: {message}"
            else:
                assert test in known, f"{where}: {message}"


def test_few_errors_have_no_test(table):
    missing = [
        (where, message)
        for where, messages in table.items()
        for message, test in messages.items()
        if test.startswith(error_sites.UNPROVOKED)
    ]
    assert len(missing) <= 3, missing


def test_what_is_noted(tmp_path, monkeypatch):
    """By place and message, through the functions that make errors."""
    for kind in (UserError, InterruptedRun):
        monkeypatch.setattr(kind, "__init__", kind.__init__)
    notes = tmp_path / "notes"
    here = error_sites.Site("x.py", 0, "here", "words")
    monkeypatch.setattr(error_sites, "ROOT", HERE)
    lines = (HERE / "test_errors.py").read_text().splitlines()
    at = {
        here._replace(file="test_errors.py", line=i, message=text)
        for i, line in enumerate(lines, start=1)
        for text in ("one", "two", "three")
        if line.endswith(f"# {text}")
    }
    monkeypatch.setattr(error_sites, "sites", lambda: tuple(at))
    error_sites.record(str(notes))
    UserError("words")  # one
    StorageError("words")  # two
    assert "Unknown x" in str(unknown_name("x", 1, "abc"))  # three
    assert str(UserError("not noted")) == "not noted"
    found = [json.loads(line) for line in notes.read_text().splitlines()]
    test = "tests/test_errors.py::test_what_is_noted"
    assert [(x[1], x[2].removeprefix("tests/")) for x in found] == [
        (text, test.removeprefix("tests/")) for text in ("one", "two", "three")
    ]


def test_a_library_of_an_extra_is_named_with_it():
    needed = r"Filling a cache needs 'seqio'.*pip install 'panda-jax\[data\]'"
    absent = ModuleNotFoundError("No module named 'seqio'", name="seqio")
    with (
        pytest.raises(UserError, match=needed),
        needs_extra("data", "Filling a cache"),
    ):
        raise absent
