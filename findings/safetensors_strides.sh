#!/usr/bin/env bash
# safetensors 0.8.0: `safetensors.numpy.save_file` of an array that is not
# C-contiguous writes its memory as it lies, so that other numbers come back,
# without an error. safetensors 0.7.0 writes the right ones.
#
# Exits 0 while that is so, and 1 once it is not. Needs a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python=$folder/venv/bin/python

cat > "$folder/program.py" <<'PROGRAM'
import os
import sys

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

array = np.arange(6, dtype=np.float32).reshape(2, 3)
arrays = {
    "contiguous": array,
    "transposed": array.T,
    "in Fortran's order": np.asfortranarray(array),
    "every second column": np.arange(12.0).reshape(2, 6)[:, ::2],
}
path = os.path.join(sys.argv[1], "file.safetensors")
save_file(arrays, path)
read = load_file(path)
wrong = [
    name for name, x in arrays.items() if not np.array_equal(x, read[name])
]
print(f"safetensors {safetensors.__version__}:")
print(f"  other numbers came back of: {', '.join(wrong) or 'none'}")
if "transposed" in wrong:
    print(f"  wrote {array.T.tolist()}, read {read['transposed'].tolist()}")
sys.exit(wrong != sys.argv[2:])
PROGRAM

"$python" -m pip install --quiet numpy==2.4.6 safetensors==0.7.0
"$python" "$folder/program.py" "$folder"
"$python" -m pip install --quiet safetensors==0.8.0
"$python" "$folder/program.py" "$folder" \
    "transposed" "in Fortran's order" "every second column"
