"""A run's step, compiled for a machine that is not there.

`plan` answers what fits, from `abstract` (the step from shapes alone), `chips`
(what a machine is) and `hlo` (FLOPs, bytes, collectives of a program, which
`hlo_text` reads).

May import: training and below.
"""
