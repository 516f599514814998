#!/usr/bin/env bash
# What an accelerator makes of all this, in under ten minutes.
#
#     bash benchmarks/device.sh fill DATA
#     OUT=DIR bash benchmarks/device.sh measure
#
# The machine may have no network, no TensorFlow and no SeqIO: `fill` puts what
# it needs of us into .carried/ (which git ignores): data files, a vocabulary and
# the token caches made of them. `measure` runs there, beside that folder,
# and leaves JSON files, `parts.txt` (what ended how, and when) and `log.txt` in
# OUT. Each part has its own limit in seconds, and one that fails stops no other.
# SIZE=small tries all of it in minutes, on a CPU. PYTHON names another Python.
set -uo pipefail
here=$PWD
cd "$(dirname "$0")/.." || exit
carried=.carried
python=${PYTHON:-python3}
size=${SIZE:-full}
export PYTHONPATH=$PWD PANDA_CACHE_DIR=$PWD/$carried/cache
# Ways are processes of their own: none may take the whole memory at once.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
rows=("--data_dir=$carried/data" "--vocabulary=$carried/vocab.txt")
real=rte,mrpc,cola,conll04
bank=cb,rte,cola,mrpc,stsb

fill() {
  local data=${1:?Give the folder of the data files.} folder script
  set -e
  # As seen from where the command was given.
  data=$(cd "$here" && realpath "$data")
  rm -rf "$carried"
  mkdir -p "$carried/data"
  mkdir "$carried/data/super_glue" "$carried/data/glue"
  cp -RL "$data"/conll04 "$carried/data"
  cp -RL "$data"/super_glue/{CB,RTE} "$carried/data/super_glue"
  cp -RL "$data"/glue/{CoLA,MRPC,STS-B} "$carried/data/glue"
  chmod -R u+w "$carried"
  folder=$("$python" -c 'from panda_jax.store import backbones
print(backbones.minilm_folder())')
  cp "$folder/vocab.txt" "$carried/vocab.txt"
  # The rows are those of any size of backbone with this vocabulary.
  for script in real bank; do
    "$python" "benchmarks/${script}_rows.py" "${rows[@]}" \
      --backbone=random:bert-tiny --fill "--tasks=${!script}"
  done
  du -sh "$carried"
}

# NAME SECONDS COMMAND...: runs it; its status is the command's, 124 if it ran
# out of time.
part() {
  local name=$1 limit=$2 begun=$SECONDS status=0
  shift 2
  timeout --kill-after=5 "$limit" "$python" "$@" "--out=$OUT/$name.json" \
    >"$scratch/$name" 2>&1 || status=$?
  printf '%s: status %s after %s s\n' "$name" "$status" $((SECONDS - begun)) |
    tee -a "$OUT/parts.txt"
  {
    printf -- '--- %s\n' "$name"
    tail -n 200 "$scratch/$name"
  } >>"$OUT/log.txt"
  [ "$status" = 0 ] || tail -n 5 "$scratch/$name"
  return "$status"
}

measure() {
  : "${OUT:?Set it to the folder of the results.}"
  OUT=$(cd "$here" && mkdir -p "$OUT" && realpath "$OUT")
  : >"$OUT/log.txt"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  export JAX_COMPILATION_CACHE_DIR=$scratch/compiled
  "$python" -c 'import jax; print(jax.__version__, jax.devices())' |
    tee "$OUT/parts.txt"
  local base=random:bert-base large=random:bert-large
  local half=--dtype=bfloat16
  local steps=(--rounds=3 --steps=300) banks=(--rounds=3)
  local turns=(--repeats=3 --seconds=0.5)
  local lanes=(--lanes=21 --peak) chunks=1,3,21 few=7,21
  if [ "$size" = small ]; then
    base=random:bert-tiny large=random:bert-tiny half=--dtype=float32
    real=rte
    steps=(--rounds=1 --steps=4 --rows=32)
    banks=(--rounds=1 --prompts=5 --rows=8)
    turns=(--repeats=1 --seconds=0.1)
    lanes=(--lanes=3 --unit=1) chunks=1,3 few=3
  fi
  # PEFT's ways fail where it does not go with transformers: then ours alone.
  local status=0
  rows+=("--backbone=$base" "$half")
  steps=(benchmarks/real_rows.py "${rows[@]}" "${steps[@]}" "--tasks=$real")
  part real_rows 190 "${steps[@]}" "--ways=ours,PEFT grouped" || status=$?
  if [ "$status" != 0 ] && [ "$status" != 124 ]; then
    part real_rows 60 "${steps[@]}" --ways=ours
  fi
  part full_rows 80 benchmarks/bert_step.py "--backbones=$base" "$half" \
    "--only=panda,prompt,careful,torch prompt" "${turns[@]}"
  part fleet 90 benchmarks/fleet_lanes.py "--backbones=$base" "$half" \
    "--chunks=$chunks" "${lanes[@]}" "${turns[@]}"
  part utilisation 80 benchmarks/fleet_lanes.py "--backbones=$large" "$half" \
    "--chunks=$few" "${lanes[@]}" "${turns[@]}"
  part bank_rows 70 benchmarks/bank_rows.py "${rows[@]}" "${banks[@]}" \
    "--tasks=$bank"
  return 0
}

case ${1:-} in
  fill | measure) "$@" ;;
  *)
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
