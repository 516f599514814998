"""What a run is, as a value: no JAX, so that a command line reads it at once.

`runs.Run` holds the settings, `settings` says which method and recipe uses
which of them, `registry` is the one place where names are written down
(methods, recipes, metrics, optimizers, schedules, transforms, initialisers).

May import: data's task table, the top.
"""
