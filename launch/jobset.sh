#!/usr/bin/env bash
# Submits one run as a JobSet to a GKE cluster with TPU node pools.
#
#   NAME=cb IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/panda-jax:1 \
#     BUCKET=my-bucket launch/jobset.sh \
#     train --task=cb --model_dir=/gcs/panda/runs/cb
#
# The bucket is mounted at MOUNT (/gcs/panda) in every pod. ACCELERATOR
# (tpu-v6e-slice), TOPOLOGY (4x4), HOSTS of a slice (4) and CHIPS of a host (4)
# must be those of the node pool; SLICES (1); SERVICE_ACCOUNT of the pods
# (default); RESTARTS after failures (10). DRY_RUN=1 prints the manifest.
# docs/pods.md tells the whole way.
set -euo pipefail
if [[ $# -eq 0 || -z ${NAME:-} || -z ${IMAGE:-} || -z ${BUCKET:-} ]]; then
  echo "usage: NAME=NAME IMAGE=IMAGE BUCKET=NAME $0 VERB [--flag ...]" >&2
  exit 2
fi
export NAME IMAGE BUCKET MOUNT=${MOUNT:-/gcs/panda}
export SLICES=${SLICES:-1} HOSTS=${HOSTS:-4} CHIPS=${CHIPS:-4}
export ACCELERATOR=${ACCELERATOR:-tpu-v6e-slice} TOPOLOGY=${TOPOLOGY:-4x4}
export SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default} RESTARTS=${RESTARTS:-10}
ARGS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")
export ARGS

fill='import os, string, sys
text = string.Template(sys.stdin.read()).substitute(os.environ)
sys.stdout.write(text)'
manifest=$(python3 -c "$fill" <"$(dirname "$0")/jobset.yaml")
if [[ -n ${DRY_RUN:-} ]]; then
  echo "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
