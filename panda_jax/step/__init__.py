"""The algorithm: one jitted step for every method, and its map over lanes.

`losses` (task loss, distillation), `optimizers`, `steps` (train, predict and
probe, written for one prompt) and `fleet` (the one place that maps over lanes).
They read without the rest of the house.

May import: models, config's names, the top.
"""
