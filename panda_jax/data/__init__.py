"""From a task's rows to arrays, and from outputs to scores.

`tokenizer` (BERT's WordPiece) and `text_tokenizer` (T5's SentencePiece, or
bytes) make ids of texts, by what `wordpiece` and `tokenizer_files` read of
folders, settings included; `loading` fills and reads the `token_cache` and cuts
batches, `examples` are the arrays, `plain` makes them without SeqIO (the user's
own rows, and those of `predict`). Back again: `answers` reads outputs,
`task_metrics` judges classes and scores, `text_metrics` answers, spans and
roles by F1. The tasks themselves are in `panda_jax.tasks`, the checkout's
folder `tasks/`; `catalogue` prints what they are.

May import: io, interop, models, the top; `panda_jax.tasks` belongs to it.
"""
