"""Being asked to end: SIGTERM, and a pod's notice of preemption."""

import signal
import threading
from types import FrameType
from typing import Any


class Signals:
    """Notes SIGTERM while it is entered; the loop asks between dispatches.

    With several processes JAX's own notice is asked, on which all agree: one
    that stopped alone would leave the others waiting.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None
        self._entered = False

    def __enter__(self) -> "Signals":
        import jax

        main = threading.current_thread() is threading.main_thread()
        if main and jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._note)
            self._entered = True
        return self

    def __exit__(self, *unused: object) -> None:
        if self._entered:
            signal.signal(signal.SIGTERM, self._before)
            self._entered = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def asked(self, step: int) -> bool:
        """Whether to save and end now, after `step`."""
        import jax

        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
