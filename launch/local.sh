#!/usr/bin/env bash
# One machine: one process that uses every device, which is the fastest way;
# or PROCESSES of them with one GPU each (or on the CPU), to rehearse a pod.
#
#   launch/local.sh train --task=cb --model_dir=runs/cb
#   PROCESSES=2 launch/local.sh train --task=cb --model_dir=runs/cb
#
# PORT: on which process 0 listens (8476). VENV: where panda-jax is installed;
# by default it is looked up in PATH. The exit status is that of the first
# process that failed; when one fails, the others end within a minute.
set -euo pipefail
if [[ $# -eq 0 ]]; then
  echo "usage: [PROCESSES=N] $0 VERB [--flag=value ...]" >&2
  exit 2
fi
export PATH="${VENV:+$VENV/bin:}$PATH"

run() { exec panda-jax "$@"; }

processes=${PROCESSES:-1}
if ((processes == 1)); then
  run "$@"
fi
export JAX_COORDINATOR_ADDRESS="127.0.0.1:${PORT:-8476}"
export JAX_NUM_PROCESSES=$processes
pids=()
for ((index = 0; index < processes; index++)); do
  export JAX_PROCESS_ID=$index JAX_LOCAL_DEVICE_IDS=$index
  (run "$@") > >(sed -u "s/^/[$index] /") 2>&1 &
  pids+=($!)
done
trap 'kill "${pids[@]}" 2>/dev/null || true' INT TERM
status=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  ((status)) || status=$code
done
exit "$status"
