"""The front doors: `train`, `train_fleet`, `score` and `rank`.

`training` checks what is given, makes the runs that a run needs first and turns
a metric's score into the distillation's weight, `run_inputs` loads and
describes what it is given, `scoring` goes from banks to scores. `evaluate` and
`predict` stand in `training`'s own folder.

May import: transfer, training and below.
"""
