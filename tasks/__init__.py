"""The tasks, imported as `panda_jax.tasks` and never as `tasks`.

`specs` is the table of tasks, `readers` reads the distribution files and
`offline` makes the built-in tasks' rows, all in plain Python.  `registry`,
`vocabulary` and `features` are the SeqIO side: they load TensorFlow and are
imported only when a token cache must be filled.
"""
