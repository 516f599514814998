"""Folders that others wrote: nothing that they name outside them is read."""

import os
import pathlib
import re

from panda_jax.errors import UserError
from panda_jax.io.files import read_json

# A configuration has kilobytes, an index some hundred bytes for each of some
# thousand arrays.  Parsing may take twenty times as much memory.
_MOST_JSON = 1 << 22
_MOST_HIDDEN = 1 << 16
# The hub's cache: models--ORG--NAME/snapshots/REVISION has links to files in
# models--ORG--NAME/blobs, some of which huggingface_hub 2.4 and later make
# links to a store of the whole cache, CACHE/blobs/HH/HASH.
_MODEL = "models--"
_SNAPSHOTS, _BLOBS, _MAIN = "snapshots", "blobs", "refs/main"
_STORE_MARK = ".huggingface-shared-blobs"
_STORED = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The path of a file or folder that a foreign folder names.

    Links may lead elsewhere in the folder, and from a snapshot of the Hugging
    Face hub's cache to where the hub keeps its files.  Which that is follows
    from where the folder lies, not from how it is spelt: links to a snapshot
    are snapshots.

    Raises:
      UserError: the name is absolute, climbs with `..`, or is a link that
        leads out.
    """
    parts = pathlib.PurePosixPath(name).parts
    climbs = ".." in parts or "\\" in name
    if not parts or climbs or name.startswith("/"):
        raise UserError(
            f"{str(folder)!r} names the path {name[:200]!r}, expected a name "
            "inside the folder. Do not use this folder."
        )
    try:
        path = folder / name
        if len(parts) == 1 and path.is_file() and not path.is_symlink():
            return path
        target, root = path.resolve(), folder.resolve()
        within = target.is_relative_to(root) or _is_blob(target, root)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{str(folder)!r} names the path {name[:200]!r}, which cannot be "
            f"followed ({error}). Do not use this folder."
        ) from None
    if not within:
        raise UserError(
            f"{str(path)!r} is a link to outside the folder. Put a copy in "
            "its place."
        )
    return path


def snapshot(folder: pathlib.Path) -> pathlib.Path:
    """A model's folder in the hub's cache -> its snapshot of `main`.

    Any other folder is returned as it is.

    Raises:
      UserError: `refs/main` names no snapshot that is there.
    """
    place = folder.resolve()
    if not place.name.startswith(_MODEL) or not (place / _SNAPSHOTS).is_dir():
        return folder
    there = sorted(path.name for path in (place / _SNAPSHOTS).iterdir())
    try:
        found = inside(place, _MAIN).read_text(errors="replace").strip()
    except OSError:
        # Fetched by a commit's hash: nothing says which is the main one.
        found = there[0] if len(there) == 1 else ""
    if found not in there:
        raise UserError(
            f"{str(folder)!r} is a model in the hub's cache; its {_MAIN} names "
            f"the snapshot {found[:80]!r}, there are {there[:5]}. Give the "
            "folder of one snapshot, or fetch the model again."
        )
    return place / _SNAPSHOTS / found


def _is_blob(target: pathlib.Path, root: pathlib.Path) -> bool:
    """Whether the hub keeps a file of a snapshot there; both are resolved."""
    for place in (root, *root.parents):
        model = place.parent.parent
        if place.parent.name == _SNAPSHOTS and model.name.startswith(_MODEL):
            break
    else:
        return False
    store = model.parent / _BLOBS
    if target.is_relative_to(model / _BLOBS):
        return True
    return (
        target.is_relative_to(store)
        and _STORED.fullmatch(target.relative_to(store).as_posix()) is not None
        and (store / _STORE_MARK).is_file()
    )


def json_inside(
    folder: pathlib.Path, name: str, *, what: str, most: int = _MOST_JSON
) -> dict:
    """The JSON object of a file in a foreign folder.

    Args:
      folder: where it lies.
      name: of the file.
      what: what the file is, for the message.
      most: bytes that it may have.

    Raises:
      UserError: it is missing, too large, no JSON object, or a link that
        leads out.
    """
    path = inside(folder, name)
    if path.is_file() and path.stat().st_size > most:
        raise UserError(
            f"The {what} {str(path)!r} has {path.stat().st_size} bytes, "
            f"expected at most {most}. Restore it from its source."
        )
    return read_json(path, what=what)


def stored_bytes(folder: pathlib.Path) -> int:
    """The size of all files of a folder, none of which may lie outside.

    Raises:
      UserError: a link leads out, or a hidden file (metadata) is too large.
    """
    total = 0
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = pathlib.Path(parent, name)
            if path.is_symlink():
                inside(folder, path.relative_to(folder).as_posix())
        for name in files:
            path = pathlib.Path(parent, name)
            size = path.lstat().st_size
            if name.startswith(".") and size > _MOST_HIDDEN:
                raise UserError(
                    f"{str(path)!r} has {size} bytes, expected at most "
                    f"{_MOST_HIDDEN}. Restore it from its source."
                )
            total += size
    return total
