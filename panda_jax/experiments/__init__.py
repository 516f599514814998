"""What is asked of many runs: `grid` makes them, `report` tells what they show.

`ranking` judges metrics by what transfers did. `tables.py` prints tables for
both `report` and `ranking`, and `inference.py` says how sure a mean is. The
paper's figures lie in `published`.

Of each other, `report` alone imports anything: how `grid.json` is read.
"""
