"""Claims: who is at work on what, among processes that share a folder.

No process leads. A claim is a numbered folder, `NAME/0`, `NAME/1`, ...: making
a folder either succeeds or finds that another made it, on local disks, NFS and
mounted buckets alike. The last number counts. Whoever holds it renews the file
in it from time to time; a claim that was given up, or whose holder has fallen
silent, is followed by the next number, which again only one can make. Nothing
is ever removed, so that no late comer can mistake a new claim for an old one.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

from panda_jax.errors import UserError
from panda_jax.io.files import (
    PathLike,
    hidden,
    read_json,
    remove_abandoned,
    write_json,
)

FILE = "claim.json"
# The claim on a run's folder, in that folder.
LOCK = ".panda_jax.lock"
# Without a sign of life for so many seconds a claim is another's to take.
STALE_SECONDS = 120.0
# Signs of life in that time.
_BEATS = 8
_now = time.monotonic


class Claims:
    """The claims of one process in a folder.

    Args:
      folder: shared by all; made when absent.
      stale: seconds of silence after which a claim is anyone's; of a claim
        whose holder said more, those. They are counted here, from when the
        same sign was first seen, so that the clocks of machines may differ.

    Raises:
      UserError: no seconds at all.
    """

    def __init__(
        self, folder: PathLike, *, stale: float = STALE_SECONDS
    ) -> None:
        if stale <= 0:
            raise UserError(
                f"stale_seconds is {stale}, expected a number above 0, longer "
                "than a process is ever silent."
            )
        self.folder = pathlib.Path(folder)
        self.stale = stale
        self.owner = uuid.uuid4().hex[:12]
        self._seen: dict[str, tuple[str, float]] = {}

    def take(
        self,
        name: str,
        *,
        doing: str = "",
        on_lost: Callable[[], object] | None = None,
    ) -> "Claim | None":
        """Takes the claim, or None where another is at work.

        Args:
          name: what is claimed, as a file's name.
          doing: for people.
          on_lost: called from a thread when this process was silent for so
            long that another has taken over.
        """
        number = self.last(name) + 1
        if number and self.holder(name) is not None:
            return None
        place = self.folder / name / str(number)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.mkdir()
        except (FileExistsError, FileNotFoundError):
            return None  # another was faster, or ends this moment
        try:
            return Claim(self, name, number, doing, on_lost)
        except BaseException:
            # Others would wait for it to say something.
            shutil.rmtree(place, ignore_errors=True)
            raise

    def holder(self, name: str) -> dict[str, Any] | None:
        """What the claim says of whoever is at work; None where nobody is."""
        number = self.last(name)
        if number < 0:
            return None
        try:
            said = read_json(self.folder / name / str(number) / FILE)
        except UserError:  # made a moment ago; or its maker died at once
            said = {}
        if said.get("released"):
            return None
        sign = json.dumps([number, said.get("owner"), said.get("beat")])
        known, since = self._seen.get(name, (None, 0.0))
        now = _now()
        if known != sign:
            self._seen[name] = sign, now
        elif now - since > max(self.stale, _seconds(said.get("stale"))):
            return None
        return None if _is_dead(said) else said

    def all(
        self, among: Collection[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Name -> holder of every claim that somebody is at work on.

        Args:
          among: looks at these names alone; None for all.
        """
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return {}
        found = {
            name: self.holder(name)
            for name in sorted(names)
            if among is None or name in among
        }
        return {name: said for name, said in found.items() if said is not None}

    def sweep(self) -> None:
        """Removes what processes that were killed had begun to write here."""
        for claim in self.folder.glob("*/*/"):
            remove_abandoned(claim, suffix=".json")

    def last(self, name: str) -> int:
        """The number of the claim that counts; -1 without any."""
        try:
            names = os.listdir(self.folder / name)
        except (FileNotFoundError, NotADirectoryError):
            return -1
        return max((int(n) for n in names if n.isdecimal()), default=-1)


class Claim:
    """A claim that this process holds; a context manager that gives it up.

    Attributes:
      lost: whether another has taken over.
    """

    def __init__(
        self,
        claims: Claims,
        name: str,
        number: int,
        doing: str,
        on_lost: Callable[[], object] | None,
    ) -> None:
        self._claims = claims
        self._name = name
        self._number = number
        self._on_lost = on_lost
        self._ended = threading.Event()
        self.lost = False
        self._said: dict[str, Any] = {
            "owner": claims.owner,
            "doing": doing,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "process_began": _began(os.getpid()),
            "since": clock(),
            "stale": claims.stale,
            "beat": 0,
            "released": False,
        }
        self._write()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        folder = self._claims.folder / self._name / str(self._number)
        # After a power cut there is no holder either.
        said = {**self._said, "at": clock()}
        write_json(folder / FILE, said, durable=False)

    def _live(self) -> None:
        """Gives signs of life until the end."""
        while not self._ended.wait(self._claims.stale / _BEATS):
            # A full disk, or a short absence of the network: once more later.
            with contextlib.suppress(OSError):
                if self._claims.last(self._name) != self._number:
                    self.lost = True
                    if self._on_lost is not None:
                        self._on_lost()
                    return
                self._said["beat"] += 1
                self._write()

    def release(self) -> None:
        """Gives the claim up."""
        self._ended.set()
        self._thread.join()
        if self.lost:
            return
        self._said["released"] = True
        # Unwritten, the claim is found to be that of a process that has ended.
        with contextlib.suppress(OSError):
            self._write()

    def remove(self) -> None:
        """Gives the claim up, with all earlier ones of its name, at once.

        Were it released first, what another has taken by then would go too.
        """
        self._ended.set()
        self._thread.join()
        if self.lost:
            return
        # A name that `ownership.sweep` knows, should a kill come between.
        gone = hidden(self._claims.folder / "panda_jax")
        with contextlib.suppress(OSError):
            os.rename(self._claims.folder / self._name, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


@contextlib.contextmanager
def alone(
    folder: PathLike,
    *,
    done: Callable[[], bool],
    stale: float = STALE_SECONDS,
) -> Iterator[Claim]:
    """Holds a run's folder, which one process at a time may write to.

    A holder of this machine that has ended is followed at once. One of another
    machine is watched until it gives a sign of life, or none for so long that
    it counts as gone.

    Args:
      folder: of the run; made when absent.
      done: whether no run is under way there.
      stale: seconds of silence after which a holder counts as gone.

    Raises:
      UserError: another holds it; says who, and since when.
    """
    folder = pathlib.Path(folder)
    made = not folder.exists()
    claim = _awaited(Claims(folder, stale=stale))
    try:
        yield claim
    finally:
        nothing = ended = False
        with contextlib.suppress(OSError):  # a folder that is gone or shut
            nothing = os.listdir(folder) == [LOCK]
            ended = nothing or done()
        if ended:
            claim.remove()
        else:
            claim.release()
        if nothing and made and not claim.lost:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _awaited(claims: Claims) -> Claim:
    """The claim on a run's folder, when it is clear whether anyone is there."""
    first = None
    while True:
        claim = claims.take(LOCK)
        if claim is not None:
            return claim
        said = claims.holder(LOCK)
        if not said:  # given up this moment, or not yet written
            time.sleep(0.05)
            continue
        beat = said.get("owner"), said.get("beat")
        if said.get("machine") == _machine() or first not in (None, beat):
            raise UserError(
                f"The run folder {str(claims.folder)!r} is held by process "
                f"{said.get('pid')} on {said.get('host')}, at work since "
                f"{said.get('since')}, last heard of at {said.get('at')}. Wait "
                "for it, end it, or choose another folder (--model_dir)."
            )
        if first is None:
            first = beat
            warnings.warn(
                f"{str(claims.folder)!r} was last held by process "
                f"{said.get('pid')} on {said.get('host')}: waiting up to "
                f"{max(claims.stale, _seconds(said.get('stale'))):.0f} s for a "
                "sign of life.",
                RuntimeWarning,
                stacklevel=2,
            )
        time.sleep(min(1.0, claims.stale / _BEATS))


def parse_shard(text: str | None) -> tuple[int, int]:
    """`i/n` as (i, n), counted from 0; from 1 will do too.

    Raises:
      UserError: it is nothing of the kind.
    """
    if text is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/([1-9]\d*)", text)
    if found is None or int(found[1]) > int(found[2]):
        raise UserError(f"shard is {text!r}, expected i/n, such as 0/4 to 3/4.")
    return int(found[1]) % int(found[2]), int(found[2])


def clock() -> str:
    """The time, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _seconds(said: Any) -> float:
    """What a claim says of its own silence; 0 where it says nothing."""
    # More than a week is no time between two signs of life.
    return min(said, 604800.0) if isinstance(said, int | float) else 0.0


def _machine() -> str:
    """What processes that see each other's numbers have in common."""
    parts = [socket.gethostname()]
    for read in (
        lambda: pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            parts.append(read().strip())
        except OSError:  # no Linux
            parts.append("")
    return " ".join(parts)


def _began(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None where unknown.

    Raises:
      ProcessLookupError: there is none, or only its exit status is left.
    """
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if pathlib.Path("/proc/self/stat").exists():
            raise ProcessLookupError(pid) from None
        return None
    # Its name, in brackets, may hold anything.
    fields = text.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        raise ProcessLookupError(pid)
    return fields[19]


def _is_dead(said: dict[str, Any]) -> bool:
    """Whether a claim's process ran on this machine and has ended."""
    pid = said.get("pid")
    if said.get("machine") != _machine() or type(pid) is not int or pid < 1:
        return False
    try:
        os.kill(pid, 0)
        return _began(pid) != said.get("process_began")
    except (ProcessLookupError, OverflowError):  # no process has such a number
        return True
    except PermissionError:  # another user's, and alive
        return False
