"""Which source helps a target, before any transfer.

`transfer_metrics` is the table of metrics; `similarity`, `transferability` and
`readouts` compute them; `probing` and `target_features` read what they need,
`first_steps` tries. `scorer` makes a matrix of two banks, `combine` one metric
of several, `source_fusion` one source of several; `scores` and `pictures` show.

May import: training and below.
"""
