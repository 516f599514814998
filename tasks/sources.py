"""Where a task's rows come from: our grammar, files, or TFDS."""

import dataclasses
import hashlib
import os
import pathlib
from typing import Protocol

from panda_jax.tasks import offline, own, readers
from panda_jax.tasks.rows import Row
from panda_jax.tasks.spec import ALL_SPLITS, TaskSpec

from panda_jax.errors import UserError, needs_extra


class Source(Protocol):
    """The rows of one task.  `str()` of a source says where they come from."""

    def fingerprint(self, split: str) -> str | None:
        """Identifies the rows of a split without TensorFlow, or is None."""
        ...

    def rows(self, split: str) -> list[Row]:
        """All rows of a split in their order, checked."""
        ...


def find(
    spec: TaskSpec,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    tfds_data_dir: str | os.PathLike[str] | None = None,
) -> Source:
    """The source of a task's rows.

    Args:
      spec: the task.
      data_dir: folder of distribution files; default `PANDA_DATA_DIR`.
      tfds_data_dir: TFDS's folder, used when there is no `data_dir`; default
        `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
    """
    if spec.offline:
        return OfflineSource(spec.name)
    if spec.reader == own.READER:
        return own.OwnSource(spec)
    folder = data_dir or os.environ.get("PANDA_DATA_DIR")
    if folder:
        return FileSource(spec, os.fspath(folder))
    if not spec.tfds:
        return NoSource(spec)
    tfds = tfds_data_dir or os.environ.get("TFDS_DATA_DIR")
    return TfdsSource(spec, os.fspath(tfds or "~/tensorflow_datasets"))


@dataclasses.dataclass(frozen=True)
class OfflineSource:
    """Rows made by `tasks.offline`."""

    name: str

    def __str__(self) -> str:
        return "built in, made by a grammar"

    def fingerprint(self, split: str) -> str:
        """sha256 of the rows themselves."""
        return offline.fingerprint(self.name, known(split))

    def rows(self, split: str) -> list[Row]:
        """The rows of a split."""
        return [dict(row) for row in offline.rows(self.name, known(split))]


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Rows in distribution files under `folder`."""

    spec: TaskSpec
    folder: str

    def __str__(self) -> str:
        names = (name for names in self.spec.files.values() for name in names)
        return f"files {', '.join(names)} in {self.folder}"

    def fingerprint(self, split: str) -> str:
        """sha256 of the files' contents."""
        return readers.fingerprint(self.spec, known(split), self.folder)

    def rows(self, split: str) -> list[Row]:
        """The rows of a split."""
        return readers.read(self.spec, known(split), self.folder)


@dataclasses.dataclass(frozen=True)
class NoSource:
    """No rows: no folder is given, and TFDS does not have the data set."""

    spec: TaskSpec

    def __str__(self) -> str:
        return "files that --data_dir (or PANDA_DATA_DIR) must name"

    def fingerprint(self, split: str) -> None:
        """None: there is nothing."""
        known(split)

    def rows(self, split: str) -> list[Row]:
        """Raises an error that says what to give."""
        known(split)
        raise UserError(
            f"Task {self.spec.name!r} is not in TFDS: give its files "
            f"({', '.join(readers.layout(self.spec))}) by --data_dir (or "
            "PANDA_DATA_DIR)."
        )


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Rows of a TFDS data set, prepared under `folder` or downloaded."""

    spec: TaskSpec
    folder: str

    def __str__(self) -> str:
        return f"TFDS {self.spec.tfds} in {self.folder}"

    def prepared(self) -> pathlib.Path | None:
        """The newest prepared version's folder, None without one."""
        root = pathlib.Path(self.folder).expanduser() / self.spec.tfds
        versions = [
            (tuple(map(int, path.parent.name.split("."))), path.parent)
            for path in root.glob("*.*.*/dataset_info.json")
            if path.parent.name.replace(".", "").isdigit()
        ]
        return max(versions)[1] if versions else None

    def fingerprint(self, split: str) -> str | None:
        """sha256 of the version's description and of the split's files."""
        folder = self.prepared()
        name = self.spec.tfds_splits.get(known(split), split)
        if folder is None:
            return None
        digest = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            # Files are named `data_set-split.format-00000-of-00001`.
            if path.suffix == ".json" or f"-{name}." in path.name:
                digest.update(f"{path.name}\n".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def rows(self, split: str) -> list[Row]:
        """The rows of a split; downloads the data set when it must."""
        with needs_extra("data", f"Reading {self}"):
            from panda_jax.tasks import from_tfds

        return from_tfds.read(
            self.spec,
            known(split),
            folder=self.folder,
            prepared=self.prepared(),
        )


def known(split: str) -> str:
    """`split`, if it is one.

    Raises:
      UserError: it is not.
    """
    if split not in ALL_SPLITS:
        raise UserError(
            f"Unknown split {split!r}, expected {', '.join(ALL_SPLITS[:-1])} "
            f"or {ALL_SPLITS[-1]}."
        )
    return split
