"""The command line: flags and gin files to the functions of the library.

Each verb is a dataclass of `arguments`: its fields are the flags, their
annotations the types, choices, groups and texts of `--help` (those of a run's
settings stand in `config.runs`). `flags` reads a command
line, `bindings` what gin files say (with `doctor`, which looks for it, the only
module that knows gin), `verbs` calls the library, and `entry` makes an exit
status of what happens. Begin with `arguments`.

May import everything of the package; nothing imports it. What loads JAX is
imported when a verb runs: `--help` answers within a second.
"""

from panda_jax.cli.entry import main, program, resolve
from panda_jax.cli.verbs import VERBS

__all__ = ["VERBS", "main", "program", "resolve"]
