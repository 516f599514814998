"""From a task's rows to arrays, and from outputs to scores.

`tokenizer` and `text_tokenizer` make ids of texts, `loading` fills and reads
the `token_cache` and cuts batches, `examples` are the arrays. Back again:
`answers` reads outputs, `task_metrics` and `text_metrics` judge them. The
tasks themselves are in `panda_jax.tasks`; `catalogue` prints what they are.

May import: io, interop, models, the top; `panda_jax.tasks` belongs to it.
"""
