"""What lies on a disk: written at once or not at all, owned, distrusted.

`files` writes atomically, `ownership` knows which files in a folder are ours,
`claims` who is at work there. `arrays` and `csv_rows` read NumPy's files and
tables, `writers` and `progress` write metrics and what a terminal shows, and
`signals` says when a run is told to end.

May import: the top (`errors`, `types`, `prompts`, `fields`).
"""
