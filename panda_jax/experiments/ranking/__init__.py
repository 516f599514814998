"""How well metrics rank sources: scores judged by what transfers did.

`ranking.py` is `evaluate_ranking`. `data.py` reads and matches scores and
results of transfers, `statistics.py` has the statistics and how they are
resampled, and `report.py` what was found, as values, text, files and pictures.

Imports `experiments.inference` and `experiments.tables`, scores and what lies
below them; nothing of `grid` or `report`.
"""
