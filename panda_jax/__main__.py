"""`python -m panda_jax VERB`."""

from panda_jax.cli import program

program()
