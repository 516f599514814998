"""Files that are either whole or absent, and JSON that is read with care."""

import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from panda_jax.errors import UserError

PathLike = str | os.PathLike[str]

# No file of ours or of others that are read here is nested so deeply, and
# Python cannot even print what is nested a thousand deep.
_MOST_NESTED = 64


def cache_folder(cache_dir: PathLike | None = None) -> pathlib.Path:
    """`cache_dir`, or `PANDA_CACHE_DIR`, or the user's cache folder."""
    chosen = cache_dir or os.environ.get("PANDA_CACHE_DIR")
    if chosen:
        return pathlib.Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "panda_jax"


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
    temporary = _beside(path)
    try:
        try:
            _create(temporary)
        except (FileNotFoundError, NotADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            _create(temporary)
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _create(path: pathlib.Path) -> None:
    """Makes an empty file, with the rights that the umask leaves.

    The system applies it. Who asks for it sets it, for a moment and for all
    threads.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))


def _beside(path: pathlib.Path) -> pathlib.Path:
    """A hidden name in the same folder that nobody else takes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{path.suffix}")


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
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with open(os.path.join(folder, name), "rb+") as file:
                    os.fsync(file.fileno())
        if path.is_dir():
            _exchange(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(new: pathlib.Path, path: pathlib.Path) -> None:
    """Puts a folder in another's place, or leaves that where it is."""
    old = pathlib.Path(
        tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old.")
    )
    try:
        os.replace(path, old / path.name)
        os.replace(new, path)
    except BaseException:
        # Also Ctrl-C between the two.
        if (old / path.name).exists() and not path.exists():
            os.replace(old / path.name, path)
        raise
    finally:
        # Not when neither could be put there: it is the only one then.
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


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
        value = parse_json(text)
        _check_characters(text, value)
    except ValueError as error:
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


def parse_json(text: str) -> Any:
    """What JSON says; may be printed, copied and compared without fear.

    Raises:
      ValueError: it is no JSON, or nested more deeply than anybody nests it.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > _MOST_NESTED:
        level = [value]
        for _ in range(_MOST_NESTED):
            level = [
                inner
                for outer in level
                for inner in (
                    outer.values() if isinstance(outer, dict) else outer
                )
                if isinstance(inner, dict | list)
            ]
            if not level:
                return value
        raise _too_deep()
    return value


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {_MOST_NESTED} deep")


def _check_characters(text: str, value: Any) -> None:
    """Refuses halves of surrogate pairs, which JSON spells and UTF-8 cannot."""
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(value, ensure_ascii=False).encode()
