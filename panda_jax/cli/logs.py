"""What libraries have to say, as lines on stderr, chosen by who says it."""

import logging
import os
import sys

# What `--log_level` may be.
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
DEFAULT = "warning"
# What absl logs is TensorFlow's, TFDS's and orbax's: dozens of warnings a run
# that nobody can act on. Whoever asks for less than warnings gets them, too.
_TALKATIVE = ("absl", "tensorflow", "h5py")


class _Lines(logging.Handler):
    """One line a message: `jax: warning: falling back to cpu`."""

    def emit(self, record: logging.LogRecord) -> None:
        name = record.name.split(".")[0]
        least = self.level
        if name in _TALKATIVE and least == logging.WARNING:
            least = logging.ERROR
        if record.levelno < least:
            return
        try:
            words = self.format(record)
            line = f"{name}: {record.levelname.lower()}: {words}"
            print(line, file=sys.stderr, flush=True)
        except Exception:  # A message that cannot be said ends no run.
            self.handleError(record)


_lines = _Lines()


def show(level: str = DEFAULT) -> None:
    """From now on messages of at least this level are lines on stderr."""
    number = LEVELS[level]
    # TensorFlow and XLA's compiler write past Python; read when they load.
    silent = "3" if number >= logging.WARNING else "0"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", silent)
    _lines.setLevel(number)
    root = logging.getLogger()
    root.setLevel(number)
    if _lines not in root.handlers:
        root.addHandler(_lines)
