#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: a CheckpointManager takes an empty folder that is
# named by a number for its latest step. `save` of that step then returns False,
# and nothing is written, without an error.
#
# Exits 0 while that is so, and 1 once it is not. Needs a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python=$folder/venv/bin/python

cat > "$folder/program.py" <<'PROGRAM'
import importlib.metadata
import os
import sys

import numpy as np
import orbax.checkpoint as ocp

folder = os.path.join(sys.argv[1], "checkpoints")
state = {"x": np.arange(3)}
with ocp.CheckpointManager(folder) as manager:
    assert manager.save(8, args=ocp.args.StandardSave(state))
os.mkdir(os.path.join(folder, "12"))
with ocp.CheckpointManager(folder) as manager:
    latest = manager.latest_step()
    saved = manager.save(12, args=ocp.args.StandardSave(state))
left = os.listdir(os.path.join(folder, "12"))
version = importlib.metadata.version("orbax-checkpoint")
print(f"orbax-checkpoint {version}, a complete step 8, an empty folder 12:")
print(f"  latest_step() is {latest}, save(12) returns {saved},")
print(f"  and the folder then holds {left}")
sys.exit((latest, saved, left) != (12, False, []))
PROGRAM

"$python" -m pip install --quiet jax==0.10.2 numpy==2.4.6 \
    orbax-checkpoint==0.12.8
"$python" -W ignore "$folder/program.py" "$folder"
