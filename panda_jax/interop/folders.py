"""Folders that others wrote: nothing that they name outside them is read."""

import os
import pathlib

from panda_jax.errors import UserError
from panda_jax.io.files import read_json

# A configuration has kilobytes, an index some hundred bytes for each of some
# thousand arrays.  Parsing may take twenty times as much memory.
_MOST_JSON = 1 << 22
_MOST_HIDDEN = 1 << 16


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The path of a file or folder that a foreign folder names.

    Links may lead elsewhere in the folder, and from a snapshot of the Hugging
    Face hub's cache to the `blobs` beside it, where the hub keeps the files.

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
    roots = [folder]
    if folder.parent.name == "snapshots":
        roots.append(folder.parent.parent / "blobs")
    try:
        path = folder / name
        if len(parts) == 1 and path.is_file() and not path.is_symlink():
            return path
        target = path.resolve()
        within = any(target.is_relative_to(root.resolve()) for root in roots)
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
