"""Files that are either whole or absent, and JSON that is read with care."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from panda_jax.errors import UserError

PathLike = str | os.PathLike[str]


def cache_folder(cache_dir: PathLike | None = None) -> pathlib.Path:
    """`cache_dir`, or `PANDA_CACHE_DIR`, or the user's cache folder."""
    chosen = cache_dir or os.environ.get("PANDA_CACHE_DIR")
    if chosen:
        return pathlib.Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "panda_jax"


# Reading it means setting it, for all threads: once, before there are any.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


@contextlib.contextmanager
def atomic_file(
    path: PathLike, *, durable: bool = True
) -> Iterator[pathlib.Path]:
    """Yields a temporary path that becomes `path` when the block succeeds.

    The temporary file lies in the same folder, so that the rename is atomic,
    and is removed when the block raises: a reader never sees half a file and
    a failed write (full disk, kill) never costs the file that was there.

    Args:
      path: of the file.
      durable: waits for the disk, so that power cuts leave no half file
        either; what can be made again may do without.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
    )
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads.
        temporary.chmod(0o666 & ~_UMASK)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(
    folder: pathlib.Path, *, suffix: str, days: float = 1.0
) -> None:
    """Removes what killed processes left of `atomic_file`, a day later.

    Args:
      folder: where.
      suffix: of the files that were to be, e.g. `".npz"`.
      days: younger ones may still be written.
    """
    for path in folder.glob(f".*{suffix}.*{suffix}"):
        with contextlib.suppress(FileNotFoundError):  # another was faster
            if path.is_file() and path.stat().st_mtime < time.time() - (
                days * 86400
            ):
                path.unlink()


@contextlib.contextmanager
def atomic_folder(path: PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that takes `path`'s place when all is well.

    A folder that was at `path` stays until the new one is complete.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(
        tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")
    )
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with open(os.path.join(folder, name), "rb+") as file:
                    os.fsync(file.fileno())
        temporary.chmod(0o777 & ~_UMASK)
        if path.is_dir():
            old = pathlib.Path(
                tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old.")
            )
            os.replace(path, old / path.name)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: PathLike, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; NaN and Inf are refused."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")


def read_json(path: PathLike, *, what: str = "file") -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: the file.
      what: what the file is, for the error message.

    Raises:
      UserError: the file is missing, unreadable, or holds no JSON object.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"The {what} {str(path)!r} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The {what} {str(path)!r} cannot be read: {error}."
        ) from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"The {what} {str(path)!r} is not valid JSON ({error}). "
            "Restore it from its source or make it again."
        ) from None
    if not isinstance(value, dict):
        raise UserError(
            f"The {what} {str(path)!r} holds a JSON {type(value).__name__}, "
            "expected an object."
        )
    return value
