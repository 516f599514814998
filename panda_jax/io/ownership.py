"""One way to own a folder: what a verb wrote there, and nothing else, is its.

A folder that a verb writes to has a hidden listing of what it wrote, with
sizes and hashes. Only files that are still as they were written are ever
replaced or removed; all others are the user's, and what is in the way of a new
file is named and left alone, unless `overwrite` is given.

A listing is written before what it lists, with the hashes of the files that
are there and of those that come: at whatever moment a process is killed, each
file is one or the other, and a file of the user's is neither. Its seal is a
hash, which tells a listing of ours from a stray or edited file; it keeps no
secret and is no proof against somebody who means harm.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from panda_jax.errors import UserError
from panda_jax.io import files
from panda_jax.io.files import PathLike

LISTING = ".panda_jax.json"
FORMAT = "panda_jax listing 1"
# Larger files are known by size and time where both are as they were.
_LARGE = 1 << 26
# What is on its way, in hidden folders of this name.
_STAGE = "panda_jax"


@dataclasses.dataclass(frozen=True)
class Version:
    """A content that a file of ours may have.

    Attributes:
      size: bytes.
      sha256: of the bytes.
      modified: when, in nanoseconds; 0 of small files.
    """

    size: int
    sha256: str
    modified: int = 0

    @classmethod
    def of(cls, path: pathlib.Path) -> "Version":
        """That of a file."""
        found = path.stat()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        large = found.st_size > _LARGE
        return cls(found.st_size, digest, found.st_mtime_ns if large else 0)

    def is_that_of(self, path: pathlib.Path) -> bool:
        """Whether a file is still so."""
        found = path.stat()
        if found.st_size != self.size:
            return False
        if self.modified and found.st_mtime_ns == self.modified:
            return True
        return Version.of(path).sha256 == self.sha256


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a listing says of a file.

    Attributes:
      by: the verb that wrote it.
      versions: that it may be; empty of what grows (logs, folders that are
        kept by others' libraries), which is known by its name alone.
    """

    by: str
    versions: tuple[Version, ...] = ()


@dataclasses.dataclass
class Listing:
    """What was written to a folder.

    Attributes:
      files: name below the folder, with `/` -> what it is.
      whole: the verb that made the folder, and replaces it, as one; empty where
        it was somebody else's.
    """

    files: dict[str, Entry] = dataclasses.field(default_factory=dict)
    whole: str = ""

    def write(self, folder: pathlib.Path) -> None:
        """Writes it to the folder, at once or not at all."""
        value = {
            "format": FORMAT,
            "whole": self.whole,
            "files": {
                name: {
                    "by": entry.by,
                    "versions": [
                        dataclasses.astuple(v) for v in entry.versions
                    ],
                }
                for name, entry in sorted(self.files.items())
            },
        }
        files.write_json(folder / LISTING, {**value, "seal": _seal(value)})

    @classmethod
    def read(cls, folder: pathlib.Path) -> "Listing | None":
        """That of a folder; None where there is none of ours."""
        try:
            value = files.read_json(folder / LISTING)
            seal = value.pop("seal", None)
            if seal != _seal(value) or value.get("format") != FORMAT:
                return None
            found = {
                name: Entry(
                    said["by"], tuple(Version(*v) for v in said["versions"])
                )
                for name, said in value["files"].items()
            }
            if not all(map(_is_inside, found, found.values())):
                return None
            return cls(found, str(value["whole"]))
        except (UserError, LookupError, TypeError, AttributeError):
            return None

    def owns(self, folder: pathlib.Path, name: str, verb: str) -> bool:
        """Whether a file is as that verb wrote it."""
        entry, path = self.files.get(name), folder / name
        if entry is None or entry.by != verb:
            return False
        if path.parent.resolve() != (folder.resolve() / name).parent:
            return False  # a link leads elsewhere
        if not entry.versions:
            return True
        if path.is_symlink() or not path.is_file():
            return False
        return any(version.is_that_of(path) for version in entry.versions)

    def frees(self, folder: pathlib.Path, name: str, verb: str) -> bool:
        """Whether nothing is there, or what that verb wrote."""
        there = os.path.lexists(folder / name)
        return not there or self.owns(folder, name, verb)


def _is_inside(name: str, entry: Entry) -> bool:
    """Whether a listing, which may be anybody's, names a file of its folder."""
    parts = pathlib.PurePosixPath(name).parts
    plain = parts and ".." not in parts and not name.startswith("/")
    return bool(plain and (entry.versions or len(parts) == 1))


def _seal(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{FORMAT}\n{text}".encode()).hexdigest()


def check(
    folder: PathLike,
    verb: str,
    names: Iterable[str],
    *,
    overwrite: bool = False,
    alone: bool = False,
) -> None:
    """Refuses, before any work is done, names that are taken in a folder.

    Args:
      folder: that is to be written to.
      verb: that will write.
      names: of the files, with `/`.
      overwrite: whatever is there may be replaced.
      alone: a folder that others have filled is in the way as a whole.

    Raises:
      UserError: the folder is a file, or names those in the way.
    """
    folder = _resolved(folder)
    listing = Listing.read(folder)
    wrong = []
    if alone and listing is None and folder.exists():
        wrong = sorted(path.name for path in folder.iterdir())
    listing = listing or Listing()
    wrong += [name for name in names if not listing.frees(folder, name, verb)]
    _refuse(
        folder, listing, verb, list(dict.fromkeys(wrong)), overwrite=overwrite
    )


def is_free(folder: PathLike, verb: str, name: str) -> bool:
    """Whether a verb may write a file: it is not there, or is the verb's."""
    folder = pathlib.Path(folder)
    return (Listing.read(folder) or Listing()).frees(folder, name, verb)


@contextlib.contextmanager
def writing(
    folder: PathLike,
    verb: str,
    *,
    overwrite: bool = False,
    removes: bool = False,
    grows: Iterable[str] = (),
) -> Iterator[pathlib.Path]:
    """Yields a folder to write files to; they come to `folder` at the end.

    One after another, each at once; none where the block raises or one of them
    is in the way. What else is in the folder stays as it is.

    Args:
      folder: where they belong; made when absent.
      verb: that writes.
      overwrite: what is in the way is replaced, whoever wrote it.
      removes: what this verb wrote there before and does not write now goes.
      grows: names in the folder that this verb will write to by itself.

    Raises:
      UserError: files in the way, by name.
    """
    folder = _resolved(folder)
    made = not folder.exists()
    inner = folder / _STAGE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with files.staged(inner) as new:
            yield new
            with files.locked(folder):
                _bring(new, folder, verb, overwrite, removes, tuple(grows))
    finally:
        if made:
            # Only where nothing came of it.
            with contextlib.suppress(OSError):
                folder.rmdir()


def sweep(folder: pathlib.Path, *, alone: bool = False) -> None:
    """Removes what killed processes were about to bring to a folder.

    Args:
      folder: that it was for.
      alone: no other process is at work on it, wherever.
    """
    for left in files.abandoned(folder / _STAGE, alone=alone):
        shutil.rmtree(left, ignore_errors=True)


def _bring(
    new: pathlib.Path,
    folder: pathlib.Path,
    verb: str,
    overwrite: bool,
    removes: bool,
    grows: tuple[str, ...],
) -> None:
    """Moves staged files to their folder, between two states of its listing."""
    for left in folder.glob(f".{LISTING}.*.json"):
        left.unlink()  # of a writer that was killed, since we have the lock
    listing = Listing.read(folder)
    if listing is None:
        listing = Listing()
        if os.path.lexists(folder / LISTING):
            _refuse(folder, listing, verb, [LISTING], overwrite=overwrite)
    fresh = _versions(new)
    wrong = _in_the_way(folder, listing, verb, fresh)
    wrong += [name for name in grows if not listing.frees(folder, name, verb)]
    _refuse(folder, listing, verb, wrong, overwrite=overwrite)
    stale = [
        name
        for name, entry in listing.files.items()
        if removes
        and entry.versions
        and name not in fresh
        and listing.owns(folder, name, verb)
    ]
    after = dict.fromkeys(grows, Entry(verb))
    after |= {name: Entry(verb, (this,)) for name, this in fresh.items()}
    during = {
        name: Entry(verb, tuple({**_former(listing, name), this: None}))
        for name, this in fresh.items()
    }
    between = {**listing.files, **after, **during}
    if between != listing.files:
        Listing(between, listing.whole).write(folder)
    for name in fresh:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, path)
    for name in stale:
        (folder / name).unlink()
    found = {n: e for n, e in between.items() if n not in stale} | after
    if found != between:
        Listing(found, listing.whole).write(folder)


def _former(listing: Listing, name: str) -> dict[Version, None]:
    entry = listing.files.get(name)
    return dict.fromkeys(entry.versions if entry else ())


@contextlib.contextmanager
def replacing(
    folder: PathLike,
    verb: str,
    *,
    overwrite: bool = False,
    removes: bool = False,
) -> Iterator[pathlib.Path]:
    """Yields a folder that takes `folder`'s place as a whole.

    At every moment there is the old one or the new one. What the user has
    added to the old one goes along. In a folder that was made by somebody
    else, or is this process's working folder, files are brought one by one as
    `writing` does.

    Args:
      folder: that is replaced, or made.
      verb: that writes.
      overwrite: what is in the way is replaced, whoever wrote it.
      removes: what this verb wrote there before and does not write now may go.

    Raises:
      UserError: files in the way, by name, or such as would be gone.
    """
    folder = _resolved(folder)
    tidy(folder)
    if not _is_whole(folder):
        with writing(folder, verb, overwrite=overwrite) as new:
            yield new
        return
    with files.staged(folder) as new:
        yield new
        files.sync(new)
        fresh = _versions(new)
        former = Listing.read(folder) or Listing()
        wrong = _in_the_way(folder, former, verb, fresh)
        # What was there and is not now would be lost with the old folder.
        gone = {
            name: entry
            for name, entry in former.files.items()
            if name not in fresh and os.path.lexists(folder / name)
        }
        wrong += [
            name
            for name, entry in gone.items()
            if entry.by == former.whole
            and not (removes and former.owns(folder, name, verb))
        ]
        _refuse(folder, former, verb, wrong, overwrite=overwrite)
        listed = {n: e for n, e in gone.items() if e.by != former.whole}
        listed |= {name: Entry(verb, (this,)) for name, this in fresh.items()}
        Listing(listed, verb).write(new)
        if not folder.exists() or not any(folder.iterdir()):
            os.replace(new, folder)
            return
        _carry(folder, new, {*fresh, *gone, LISTING})
        files.exchange(new, folder)
        _dispose(new, folder)


def _carry(
    folder: pathlib.Path, new: pathlib.Path, but: Collection[str]
) -> None:
    """Links what the user has added, so that no kill leaves a moment without.

    What cannot be linked moves after the exchange.
    """
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        plain = path.is_file() and not path.is_symlink()
        if plain and inside.as_posix() not in but:
            (new / inside).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                os.link(path, new / inside)


def _is_whole(folder: pathlib.Path) -> bool:
    """Whether another folder may take its place."""
    if not folder.exists():
        return True
    if pathlib.Path.cwd().is_relative_to(folder) or os.path.ismount(folder):
        return False
    listing = Listing.read(folder)
    return bool(listing.whole) if listing else not any(folder.iterdir())


def tidy(folder: pathlib.Path, *, alone: bool = False) -> None:
    """Puts right what killed processes left of a folder's replacing.

    Args:
      folder: that was replaced.
      alone: no other process is at work on it, wherever.
    """
    for old in files.displaced(folder):
        _dispose(old, folder)
    for new in files.abandoned(folder, alone=alone):
        if Listing.read(new) is None:  # it never was complete
            shutil.rmtree(new, ignore_errors=True)
        else:
            _dispose(new, folder)


def _dispose(old: pathlib.Path, folder: pathlib.Path) -> None:
    """Removes a folder that another has taken the place of.

    Files that neither were part of it, unchanged, nor are replaced in the other
    are the user's or another verb's: they go along.
    """
    listing = Listing.read(old) or Listing()
    parts = {n for n, e in listing.files.items() if e.by == listing.whole}
    for parent, folders, names in os.walk(old):
        links = [n for n in folders if os.path.islink(os.path.join(parent, n))]
        for each in (*names, *links):
            path = pathlib.Path(parent, each)
            inside = path.relative_to(old)
            there = folder / inside
            name = inside.as_posix()
            ours = name in parts and listing.owns(old, name, listing.whole)
            if ours or name == LISTING or os.path.lexists(there):
                continue
            there.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, there)
    for inside in sorted(old.rglob("*"), reverse=True):
        # The listing last: without it this would be one that never was whole.
        if inside != old / LISTING:
            with contextlib.suppress(OSError):
                if inside.is_dir() and not inside.is_symlink():
                    inside.rmdir()
                else:
                    inside.unlink()
    shutil.rmtree(old, ignore_errors=True)


def remove(folder: PathLike, verb: str) -> None:
    """Removes what a verb wrote to a folder, and the folder if it is empty.

    The listing goes last, so that a kill in between leaves what can be removed
    by the same call.

    Args:
      folder: with a listing; one without is left as it is.
      verb: whose files go; those that were changed since stay.
    """
    folder = _resolved(folder)
    listing = Listing.read(folder)
    if listing is None:
        return
    left = {n: e for n, e in listing.files.items() if e.by != verb}
    for name in listing.files.keys() - left.keys():
        path = folder / name
        if not os.path.lexists(path) or not listing.owns(folder, name, verb):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    inner = {pathlib.PurePath(name).parent for name in listing.files}
    for name in sorted(inner - {pathlib.PurePath()}, reverse=True):
        with contextlib.suppress(OSError):
            (folder / name).rmdir()
    if left:
        Listing(left, listing.whole).write(folder)
        return
    (folder / LISTING).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def adopt(
    folder: PathLike,
    verb: str,
    names: Iterable[str],
    *,
    grows: Iterable[str] = (),
    whole: bool = False,
) -> None:
    """Lists files that an earlier release left as this verb's.

    Only for who knows by their content that they are; nothing where a listing
    is there already.

    Args:
      folder: where.
      verb: that wrote them.
      names: of files.
      grows: names that the verb writes to by itself.
      whole: whether the folder is replaced as one.
    """
    folder = _resolved(folder)
    if os.path.lexists(folder / LISTING) or not folder.exists():
        return
    found = {n: Entry(verb) for n in grows if os.path.lexists(folder / n)}
    for name in names:
        path = folder / name
        if path.is_file() and not path.is_symlink():
            found[name] = Entry(verb, (Version.of(path),))
    if found:
        Listing(found, verb if whole else "").write(folder)


def _resolved(folder: PathLike) -> pathlib.Path:
    """The folder, where links lead to it.

    Raises:
      UserError: it is a file.
    """
    folder = pathlib.Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file: give a folder.")
    return folder


def _versions(folder: pathlib.Path) -> dict[str, Version]:
    """All files below a folder but its listing, by name."""
    return {
        name: Version.of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and (name := path.relative_to(folder).as_posix()) != LISTING
    }


def _in_the_way(
    folder: pathlib.Path,
    listing: Listing,
    verb: str,
    fresh: dict[str, Version],
) -> list[str]:
    """Files of these names that are not ours, nor the same as the new ones."""
    found = []
    for name, this in fresh.items():
        path = folder / name
        if not os.path.lexists(path) or listing.owns(folder, name, verb):
            continue
        same = path.is_file() and not path.is_symlink()
        if not (same and this.is_that_of(path)):
            found.append(name)
    return found


def _refuse(
    folder: pathlib.Path,
    listing: Listing,
    verb: str,
    names: list[str],
    *,
    overwrite: bool,
) -> None:
    """Says which files are in the way, where any are and must not be."""
    folders = [n for n in names if (folder / n).is_dir()]
    if folders:  # which no file replaces, whatever was asked for
        raise UserError(
            f"{str(folder)!r} holds a folder {folders[0]}, which panda-jax "
            f"{verb} did not make: give another folder, or move that one away."
        )
    if not names or overwrite:
        return
    others = sorted(
        {
            listing.files[name].by
            for name in names
            if name in listing.files and listing.files[name].by != verb
        }
    )
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    whose = (
        f"written by panda-jax {' and '.join(others)}"
        if others
        else f"which panda-jax {verb} did not write so"
    )
    raise UserError(
        f"{str(folder)!r} holds {', '.join(names[:5])}{more}, {whose}: it is "
        "left as it is. Give another folder, or replace what is in the way "
        "with --overwrite."
    )
