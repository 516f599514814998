#!/usr/bin/env bash
# Mounts a bucket on this machine with Cloud Storage FUSE, which is installed
# where it is missing. Where the bucket is mounted already nothing is done.
#
#   launch/mount.sh BUCKET /gcs/panda
#
# It comes from Google's own repository, of which apt checks every package (a
# sha256 in a signed list); the key that signs is the one named here, or nothing
# is installed.
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
repository=https://packages.cloud.google.com/apt
# Of "Artifact Registry Repository Signer".
key=35BAA0B33E9EB396F59CA838C0BA5CE6DC6315A3
keyring=/etc/apt/keyrings/gcsfuse.gpg
if ! command -v gcsfuse >/dev/null; then
  made=$(mktemp -d)
  trap 'rm -rf "$made"' EXIT
  gpg=(gpg --batch --quiet --homedir "$made")
  curl -sSfL -o "$made/keys" "$repository/doc/apt-key.gpg"
  "${gpg[@]}" --import "$made/keys"
  # By its whole fingerprint: no other key can pass.
  "${gpg[@]}" --export "$key" >"$made/key"
  if [[ ! -s $made/key ]]; then
    echo "$0: $repository has no key $key; nothing is installed" >&2
    exit 1
  fi
  release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  echo "deb [signed-by=$keyring] $repository gcsfuse-$release main" \
    >"$made/list"
  sudo install -D -m 644 "$made/key" "$keyring"
  sudo install -D -m 644 "$made/list" /etc/apt/sources.list.d/gcsfuse.list
  sudo apt-get -qq update || true
  sudo apt-get -qq install -o DPkg::Lock::Timeout=600 "gcsfuse=$version*"
fi
if ! findmnt --source "$1" --mountpoint "$2" >/dev/null; then
  sudo install -d -o "$(id -u)" "$2"
  gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    "$1" "$2"
fi
