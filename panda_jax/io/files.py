"""Files that are either whole or absent, and JSON that is read with care."""

import contextlib
import ctypes
import errno
import functools
import glob
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from panda_jax.errors import UserError
from panda_jax.io import signals

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
    handle = None
    try:
        while handle is None:
            try:
                handle = _create(temporary)
            except (FileNotFoundError, NotADirectoryError):
                path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        if sys.platform == "win32":  # which renames nothing that is open
            os.close(handle)
            handle = None
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _create(path: pathlib.Path) -> int | None:
    """Makes an empty file, with the rights that the umask leaves.

    The system applies it. Who asks for it sets it, for a moment and for all
    threads.

    Returns:
      A handle with the system's lock on it, by which `remove_abandoned` knows
      that somebody is at work; None where it was swept before it was locked.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _lock(handle, wait=True)
        there = os.fstat(handle).st_nlink > 0
    except BaseException:
        os.close(handle)
        raise
    if not there:
        os.close(handle)
        return None
    return handle


def _beside(path: pathlib.Path) -> pathlib.Path:
    """A hidden name in the same folder that nobody else takes."""
    name = f".{path.name}.{_machine()}{secrets.token_hex(4)}{path.suffix}"
    return path.with_name(name)


def remove_abandoned(folder: pathlib.Path, *, suffix: str) -> None:
    """Removes what killed processes left of `atomic_file`.

    Of other machines, whose locks may not be seen here, and of releases that
    locked none, a day later.

    Args:
      folder: where.
      suffix: of the files that were to be, e.g. `".npz"`.
    """
    end = re.escape(suffix)
    name = re.compile(rf"\..*{end}\.([0-9a-f]{{4}})[0-9a-f]{{8}}{end}")
    for path in folder.glob(f".*{suffix}.*{suffix}"):
        match = name.fullmatch(path.name)
        if path.is_symlink() or not path.is_file():
            continue
        with (
            contextlib.suppress(OSError),  # another was faster
            locked(path, wait=False) as free,
        ):
            ours = match is not None and match[1] == _machine()
            known = free is not None and ours
            old = path.stat().st_mtime < time.time() - 86400
            if (free and known) or (free is not False and old):
                path.unlink()


@contextlib.contextmanager
def staged(path: PathLike) -> Iterator[pathlib.Path]:
    """Yields a hidden folder beside `path` for what is to take its place.

    What is left of it at the end is removed. The system lets go of the lock on
    it when this process ends, however it ends, by which `abandoned` knows.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, made = hidden(path), None
    with contextlib.ExitStack() as held:
        try:
            while made is None:
                temporary = hidden(path)
                temporary.mkdir()
                # Who sweeps may see it before the lock, and take it away.
                with contextlib.suppress(FileNotFoundError):
                    held.enter_context(locked(temporary))
                    made = temporary.stat().st_ino
            yield temporary
        finally:
            # Not what `exchange` has put there: the user may have files in it.
            # Ctrl-C may come between the folder and its number.
            with signals.interrupts_wait():
                there = temporary.exists()
                if there and made in (None, temporary.stat().st_ino):
                    shutil.rmtree(temporary, ignore_errors=True)


def hidden(path: pathlib.Path) -> pathlib.Path:
    """A name beside `path` that nobody else takes, for `abandoned` to find."""
    return path.with_name(f".{path.name}.{_machine()}{secrets.token_hex(4)}")


@functools.cache
def _machine() -> str:
    """Four hex digits of this machine, whose locks are seen here."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    known = boot.read_text() if boot.exists() else ""
    text = f"{socket.gethostname()} {known}"
    return hashlib.sha256(text.encode()).hexdigest()[:4]


@contextlib.contextmanager
def locked(path: pathlib.Path, *, wait: bool = True) -> Iterator[bool | None]:
    """Holds the system's lock on a folder or a file.

    Yields whether it could be had; None where there are no locks, as on some
    network disks.

    Args:
      path: that is there.
      wait: for another who holds it.
    """
    if sys.platform == "win32":
        yield None
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        yield _lock(handle, wait=wait)
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool | None:
    """Locks what is open, until it is closed; see `locked`."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def abandoned(
    path: pathlib.Path, *, alone: bool = False
) -> Iterator[pathlib.Path]:
    """What killed processes left of `staged`, one by one.

    Of other machines, whose locks may not be seen here, a day later.

    Args:
      path: that it was to be.
      alone: no other process is at work on it, wherever.
    """
    name = re.compile(
        rf"\.{re.escape(path.name)}\.([0-9a-f]{{4}})[0-9a-f]{{8}}"
    )
    for found in sorted(path.parent.glob(f".{glob.escape(path.name)}.*")):
        match = name.fullmatch(found.name)
        if match is None or found.is_symlink() or not found.is_dir():
            continue
        try:
            with locked(found, wait=False) as free:
                known = free is not None and match[1] == _machine()
                old = found.stat().st_mtime < time.time() - 86400
                if alone or (free and known) or (free is not False and old):
                    yield found
        except FileNotFoundError:  # another process took it away just now
            continue


def sync(folder: pathlib.Path) -> None:
    """Waits until the files of a folder are on the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())


def exchange(new: pathlib.Path, path: pathlib.Path) -> None:
    """Swaps two folders of one parent, or what else has these names, at once.

    Linux does so in one step on most disks. Elsewhere there is a moment in
    which `path` is in `.NAME.old.X/NAME`; `displaced` puts it back.
    """
    if _renameat2(new, path):
        return
    old = pathlib.Path(
        tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old.")
    )
    try:
        os.replace(path, old / path.name)
        os.replace(new, path)
        os.replace(old / path.name, new)
    except BaseException:
        # Also Ctrl-C between the two.
        if os.path.lexists(old / path.name) and not os.path.lexists(path):
            os.replace(old / path.name, path)
        raise
    finally:
        # Not when neither could be put there: it is the only one then.
        with contextlib.suppress(OSError):
            old.rmdir()


def _renameat2(new: pathlib.Path, path: pathlib.Path) -> bool:
    """Whether the system has swapped them; raises what a rename would."""
    if sys.platform != "linux":
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(new), here, os.fsencode(path), swap) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False  # not this disk's
    raise OSError(code, os.strerror(code), str(new), None, str(path))


def displaced(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """What killed processes left of `exchange`; puts the only one back."""
    for old in sorted(path.parent.glob(f".{glob.escape(path.name)}.old.*")):
        inner = old / path.name
        if inner.exists() and not os.path.lexists(path):
            with contextlib.suppress(FileNotFoundError):  # another was faster
                os.replace(inner, path)
        elif os.path.lexists(inner):
            yield inner
        with contextlib.suppress(OSError):
            old.rmdir()


def write_text(path: PathLike, text: str, *, durable: bool = True) -> None:
    """Writes `text` as UTF-8, atomically; see `atomic_file`."""
    with atomic_file(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: PathLike, value: Any, *, durable: bool = True) -> None:
    """Writes `value` as indented JSON, atomically; NaN and Inf are refused."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n", durable=durable)


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
