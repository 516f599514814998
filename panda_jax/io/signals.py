"""Being asked to end, by SIGTERM or Ctrl-C; and a watchdog."""

import contextlib
import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


def watch(seconds: float) -> None:
    """Writes every thread's stack to stderr, unless called again in time."""
    # Notebooks have no file behind stderr.
    with contextlib.suppress(AttributeError, ValueError, OSError):
        assert sys.__stderr__ is not None
        faulthandler.dump_traceback_later(
            seconds, repeat=True, file=sys.__stderr__
        )


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C in the block is heard at its end; a second one at once.

    For what others' code does in threads, which tell of an interruption as of
    a failure of theirs, at length.
    """
    former = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(former):
        yield
        return
    heard: list[FrameType | None] = []

    def note(number: int, frame: FrameType | None) -> None:
        if heard:
            signal.signal(signal.SIGINT, former)
            former(number, frame)
        heard.append(frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
        if heard:
            former(signal.SIGINT, heard[0])


class Signals:
    """Notes SIGTERM while it is entered; the loop asks between dispatches.

    Of several processes one that stopped alone would leave the others waiting:
    `agree` tells all of them whether any was asked.

    Attributes:
      asked: whether to save and end now.
    """

    def __init__(self) -> None:
        self._noted = False
        self.asked = False
        self._before: Any = None
        self._entered = False

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
            self._entered = True
        return self

    def __exit__(self, *unused: object) -> None:
        if self._entered:
            signal.signal(signal.SIGTERM, self._before)
            self._entered = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True

    def agree(self, late: bool) -> bool:
        """Shares what was noted; every process calls it at the same step.

        Args:
          late: whether this process finds it time for a checkpoint.

        Returns:
          Whether process 0 does; clocks differ.
        """
        import jax

        if jax.process_count() == 1:
            self.asked = self._noted
            return late
        import numpy as np
        from jax.experimental import multihost_utils

        noted = multihost_utils.process_allgather(np.array([self._noted, late]))
        self.asked = bool(noted[:, 0].any())
        return bool(noted[0, 1])
