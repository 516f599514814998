"""Progress for people: a bar on a terminal, plain lines elsewhere."""

import sys
import time


class Progress:
    """Shows how far a run is, on stderr.

    Args:
      label: what is running.
      total: steps in all.
      done: steps already behind it.
      quiet: show nothing.
    """

    def __init__(
        self, label: str, *, total: int, done: int = 0, quiet: bool = False
    ) -> None:
        self._label = label
        self._total = total
        self._done = done
        self._quiet = quiet
        self._bar = None
        if not quiet and sys.stderr.isatty():
            import tqdm

            self._bar = tqdm.tqdm(
                desc=label, total=total, initial=done, leave=False
            )

    def step(self, count: int = 1) -> None:
        """So many more steps are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)

    def say(self, text: str) -> None:
        """A line: with the bar above it, without it after step and time."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(f"{self._label}: {text}", file=sys.stderr)
            return
        clock = time.strftime("%H:%M:%S")
        print(
            f"{clock} {self._label} [{self._done}/{self._total}] {text}",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
