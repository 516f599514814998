"""What a process says of its work on a grid: lines, and `progress.json`."""

import sys
import time
from collections.abc import Collection
from typing import Any

from panda_jax.experiments.ledger import Ledger


class News:
    """Tells people how far a grid is, what is being done and what is left.

    Args:
      ledger: of the grid.
      quiet: print no lines.
    """

    def __init__(self, ledger: Ledger, *, quiet: bool) -> None:
        self._ledger = ledger
        self._quiet = quiet
        self._waited_for: list[str] = []

    def say(self, words: str) -> None:
        """A line on stderr, behind the counts."""
        if self._quiet:
            return
        counts = self._ledger.counts()
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        print(
            f"{time.strftime('%H:%M:%S')} grid "
            f"[{counts['done']}/{counts['total']}{failed}] {words}",
            file=sys.stderr,
            flush=True,
        )

    def progress(self, doing: str, holders: Collection[dict[str, Any]]) -> None:
        """The time left and what is done now, as a line and as a file.

        Args:
          doing: what this process does.
          holders: what the claims say of all who are at work.
        """
        self._ledger.write_progress(holders)
        seconds = self._ledger.seconds_left(len(holders))
        self.say(f"about {spoken(seconds)} left; {doing}" if seconds else doing)

    def waiting(self, holders: Collection[dict[str, Any]]) -> None:
        """Says, once, whom it waits for.

        Args:
          holders: what their claims say.
        """
        names = sorted(
            f"{said.get('host')}:{said.get('pid')}" for said in holders
        )
        if names and names != self._waited_for:
            self._ledger.write_progress(holders)
            self.say(f"waiting for {', '.join(names)}")
        self._waited_for = names


def spoken(seconds: float) -> str:
    """A duration such as `10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
