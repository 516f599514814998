#!/usr/bin/env bash
# Mounts a bucket on this machine with Cloud Storage FUSE, which is installed
# where it is missing. Where the bucket is mounted already nothing is done.
#
#   launch/mount.sh BUCKET /gcs/panda
#
# Nothing is remembered of files and folders, so that each host sees at once
# what another has written. On TPU machines gcsfuse would by itself never look
# again. docs/pods.md tells the whole way.
set -euo pipefail
if [[ $# -ne 2 ]]; then
  echo "usage: $0 BUCKET FOLDER" >&2
  exit 2
fi
version=3.12.0
releases=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download
if ! command -v gcsfuse >/dev/null; then
  package=gcsfuse_${version}_$(dpkg --print-architecture).deb
  curl -sSfL -o "/tmp/$package" "$releases/v$version/$package"
  sudo apt-get -qq update || true
  sudo apt-get -qq install -o DPkg::Lock::Timeout=600 "/tmp/$package"
fi
if ! findmnt --source "$1" --mountpoint "$2" >/dev/null; then
  sudo install -d -o "$(id -u)" "$2"
  gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    "$1" "$2"
fi
