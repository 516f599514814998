"""A fleet of runs from its first step to its results.

`prompt_init` makes the prompt of step 0, `step_inputs` what the compiled step
is given, `trainer` restores, steps, logs, evaluates and saves, `lane` is one
run's part in that, in its `run_folder`. `identity` computes a run's id, of what
it uses, `checkpoints` keep it, `evaluation` and `predictions` use what it
leaves.

May import: step, store, parallel and below.
"""
