"""`python -m panda_jax VERB`."""

import sys

from panda_jax.cli import main

sys.exit(main())
