"""Many runs as one value: a grid, made by any number of processes.

`grid.py` is what a user writes (lists of tasks, methods, seeds, and settings),
the runs that follow from it, with their needs and fleets, and `grid.json`,
which lists them. `ledger.py` knows from files alone what is done,
and `runner.py` claims fleets, trains them and records how it went. Read them in
this order; `grid.py` loads without JAX.

Imports training and what lies below it; nothing of `ranking` or `report`.
"""
