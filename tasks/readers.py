"""Reads the distribution files of a task and checks every row.

A row is as `TaskSpec` says.  Every fault is a `UserError` that names file,
line (or question or sentence) and field.
"""

import glob
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from panda_jax.tasks import readers_conll, readers_flat, readers_nested
from panda_jax.tasks.rows import Place, Row, checked
from panda_jax.tasks.spec import SPLITS, TaskSpec

from panda_jax.errors import UserError

Reader = Callable[
    [TaskSpec, Sequence[pathlib.Path]], Iterator[tuple[Place, dict[str, Any]]]
]

READERS: Mapping[str, Reader] = {
    "jsonl": readers_flat.jsonl,
    "tsv": readers_flat.tsv,
    "tsv_plain": readers_flat.tsv_plain,
    "multirc": readers_nested.multirc,
    "record": readers_nested.record,
    "squad": readers_nested.squad,
    "spert": readers_nested.spert,
    "conll_columns": readers_conll.conll_columns,
    "conll_props": readers_conll.conll_props,
    "conll12_roles": readers_conll.conll12_roles,
    "conll12_names": readers_conll.conll12_names,
}


def paths(spec: TaskSpec, split: str, folder: str) -> list[pathlib.Path]:
    """The files of a split, those that match one pattern in sorted order.

    Raises:
      UserError: the folder or a file is missing; says the layout expected; or
        no test rows have answers.
    """
    if split not in spec.files:
        raise no_test(spec)
    root = pathlib.Path(folder).expanduser()
    found = []
    for name in spec.files[split]:
        matches = _first_match(root, name)
        if not matches:
            raise _missing(spec, root, name)
        found += matches
    return found


def no_test(spec: TaskSpec) -> UserError:
    """What to say of a test split that a task does not have."""
    return UserError(
        f"Task {spec.name!r} has no test split with answers: score it on "
        "validation and choose with --select_on=held_out, or write answers "
        "for its unlabelled test rows with `panda-jax predict`."
    )


def absent(spec: TaskSpec, root: pathlib.Path) -> list[str]:
    """What that a task needs is not under `root`; no run needs a test split."""
    names = (name for split in SPLITS for name in spec.files.get(split, ()))
    return [name for name in names if not _first_match(root, name)]


def layout(spec: TaskSpec) -> list[str]:
    """The files of a task, for messages."""
    return [
        name.replace("|", " or ")
        for names in spec.files.values()
        for name in names
    ]


def fingerprint(spec: TaskSpec, split: str, folder: str) -> str:
    """sha256 of the contents of a split's files."""
    digest = hashlib.sha256()
    for path in paths(spec, split, folder):
        contents = readers_flat.contents(path)
        digest.update(hashlib.sha256(contents).digest())
    return digest.hexdigest()


def read(spec: TaskSpec, split: str, folder: str) -> list[Row]:
    """All rows of a split, in file order, checked.

    Raises:
      UserError: a file is missing, unreadable, empty or holds a bad row.
    """
    files = paths(spec, split, folder)
    found = READERS[spec.reader](spec, files)
    rows = [checked(spec, place, raw) for place, raw in found]
    if not rows:
        raise readers_flat.no_rows(files[0])
    return rows


def _first_match(root: pathlib.Path, name: str) -> list[pathlib.Path]:
    for pattern in name.split("|"):
        names = glob.glob(pattern, root_dir=root, recursive=True)
        files = [root / match for match in sorted(names)]
        files = [path for path in files if path.is_file()]
        if files:
            return files
    return []


def _missing(spec: TaskSpec, root: pathlib.Path, name: str) -> UserError:
    what = f"The data folder '{root}' does not exist."
    if root.is_dir():
        first = name.split("|")[0]
        what = f"The file '{root / first}' does not exist."
        if "*" in first:
            what = f"No file matches '{root / first}'."
    tfds = " Without a data folder TFDS is used." if spec.tfds else ""
    return UserError(
        f"{what} Task {spec.name!r} expects {', '.join(layout(spec))} under "
        "the folder given by --data_dir (or PANDA_DATA_DIR), as the data "
        f"set's authors ship them.{tfds}"
    )
