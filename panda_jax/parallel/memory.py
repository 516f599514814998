"""What the C library holds of memory that nobody uses."""

import ctypes
import sys


def trim() -> None:
    """Gives freed memory back to the system, where the C library can (glibc).

    It keeps what it may need again, and after compiling a program that is more
    than the program.
    """
    if sys.platform == "linux":
        found = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if found is not None:
            found(0)
