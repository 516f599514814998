"""The report of an experiment, from its result files alone.

`results.py` reads run folders and says which runs count, `board.py` brings
them into rows and columns, a board a backbone, beside the paper's figures.
`comparisons.py` says whether one way to adapt is better than another,
`tables.py` has the tables, and `report.py` puts them together and writes them.

Imports `experiments.inference` and `experiments.tables`, and of `grid` how its
list of runs is read; nothing of `ranking`, and no JAX.
"""
