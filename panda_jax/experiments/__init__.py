"""What is asked of many runs: `grid` makes them, `report` tells what they show.

`ranking` judges metrics by what transfers did. `tables.py` prints tables for
both `report` and `ranking`, and `inference.py` says how sure a mean is. The
paper's figures lie in `published`.

`grid` and `ranking` import nothing of the two others; `report` may import both.
"""
