"""A writer that is killed at its n-th step; started from a clean process."""

import os
import pathlib
import signal
from typing import Any

from panda_jax.io import files, ownership


def write(what: str, out: str, at: int, *, swaps: bool) -> None:
    """Writes `a` and `b` for `import`, unless it is killed at a step.

    Args:
      what: `writing` or `replacing`.
      out: the folder.
      at: the number of the step.
      swaps: whether the system can swap two folders.
    """
    seen = 0

    def step() -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*given: Any, **options: Any) -> Any:
            step()
            found = real(*given, **options)
            step()
            return found

        setattr(module, name, call)

    for name in ("replace", "unlink", "mkdir", "rmdir"):
        stepping(os, name)
    stepping(files, "_renameat2")
    if not swaps:
        files._renameat2 = lambda *_: False
    with getattr(ownership, what)(pathlib.Path(out), "import") as new:
        for name in "ab":
            (new / name).write_text(f"new {name}")
