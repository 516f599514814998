"""What processes tell each other of a grid's fleets that have ended.

Each time a fleet ends, whoever had claimed it leaves a file under a name that
nobody else takes. One listing shows what is new, and what is known is not read
again. Nothing is appended to or renamed over, so that a bucket will do.
Endings save looking: the truth is in the run folders, and where an ending is
missing (a kill came before it) they are looked at instead.
"""

import dataclasses
import json
import os
import pathlib
import secrets
from typing import Any

from panda_jax.errors import UserError
from panda_jax.files import atomic_file, read_json, remove_abandoned


@dataclasses.dataclass(frozen=True)
class Ending:
    """What became of a fleet's runs.

    Attributes:
      fleet: its name.
      done: lane -> the seconds that its result says.
      failed: lane -> why it has no result.
    """

    fleet: str
    done: dict[str, float]
    failed: dict[str, str]


class Endings:
    """The endings in a folder, as one process comes to know them.

    Args:
      folder: shared by all; made by the first ending.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._known: set[str] = set()
        self._files: dict[str, list[str]] = {}

    def news(self) -> list[Ending]:
        """Those that were not there, or not whole, the last time."""
        names = listed(self._folder) - self._known
        found = []
        on_their_way = {name for name in names if name[0] == "."}
        if on_their_way:  # for a moment, unless who wrote them was killed
            remove_abandoned(self._folder, suffix=".json")
        for name in sorted(names - on_their_way):
            ending = _read(self._folder / name)
            if ending is not None:
                self._know(name, ending.fleet)
                found.append(ending)
        return found

    def _know(self, name: str, fleet: str) -> None:
        self._known.add(name)
        self._files.setdefault(fleet, []).append(name)

    def tell(self, ending: Ending) -> None:
        """Leaves word of a fleet for the others."""
        name = f"{ending.fleet}.{secrets.token_hex(6)}.json"
        # What a power cut takes is read from the run folders.
        with atomic_file(self._folder / name, durable=False) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(ending)))
        self._know(name, ending.fleet)

    def take_back(self, fleet: str) -> None:
        """Removes what was told of a fleet, since it is so no longer."""
        for name in self._files.pop(fleet, []):
            (self._folder / name).unlink(missing_ok=True)


def _read(path: pathlib.Path) -> Ending | None:
    """None where it is no ending, or not yet."""
    try:
        said = read_json(path)
    except UserError:
        return None
    fleet, done, failed = (said.get(x) for x in ("fleet", "done", "failed"))
    if not (
        isinstance(fleet, str)
        and isinstance(done, dict)
        and isinstance(failed, dict)
    ):
        return None
    return Ending(
        fleet,
        {lane: known_seconds(value) for lane, value in done.items()},
        {lane: str(why) for lane, why in failed.items()},
    )


def known_seconds(said: Any) -> float:
    """What a result says that it took; 0 where it says nothing."""
    known = isinstance(said, int | float) and 0 <= said < float("inf")
    return float(min(said, 1e12)) if known else 0.0


def listed(folder: pathlib.Path) -> set[str]:
    """The names in a folder; none where there is no such folder."""
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()
