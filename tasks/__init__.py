"""The tasks, imported as `panda_jax.tasks` and never as `tasks`.

In plain Python: `spec` (what a task is), `specs` (all of them, from
`table_texts`: GLUE and SuperGLUE, `table_tokens`: tags and spans,
`table_offline`), `sources` (where rows come from), `readers` (distribution
files), `offline` (built-in tasks), `own` and `tables` (the user's rows),
`unanswered` (rows to be answered), `submissions` (answers as benchmarks take
them), `views` and `encoding` (what a row becomes).
The SeqIO side, `registry`, `vocabulary`, `features` and `from_tfds`, loads
TensorFlow and is imported only when a token cache must be filled.
"""
