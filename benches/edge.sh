#!/usr/bin/env bash
# Times the frame of an edge bundle beside PyTorch and ONNX Runtime, with the same weights, and prints the tables of README.md.
# usage: benches/edge.sh [BUNDLE] [DEVICE] [--train] [--turns N]     default: configs/bundles/demo cpu
#   --train    also training steps
#   --turns N  then the frame and the rival's fastest form, N times in turn: a shared host's pace changes from minute to minute
# Needs python3 with what benches/edge.py names. EDGE_TRAINER names a release build of trainer; without it cargo makes one.
set -euo pipefail
cd "$(dirname "$0")/.."
usage() {
  echo "usage: benches/edge.sh [BUNDLE] [DEVICE] [--train] [--turns N]" >&2
  exit 2
}
train=()
turns=0
places=()
while [ $# -gt 0 ]; do
  case $1 in
    --train) train=(--train) ;;
    --turns)
      turns=${2:-}
      [[ $turns =~ ^[1-9][0-9]*$ ]] || usage
      shift
      ;;
    -*) usage ;;
    *) places+=("$1") ;;
  esac
  shift
done
bundle=${places[0]:-configs/bundles/demo}
device=${places[1]:-cpu}
rival=target/edge-rival-${device%%:*}.jsonl
ours=target/edge-ours-${device%%:*}.jsonl
mkdir -p target
python3 benches/edge.py --bundle "$bundle" --device "$device" "${train[@]}" | tee "$rival"
trainer=${EDGE_TRAINER:-}
if [ -z "$trainer" ]; then
  features=()
  [ "$device" = cpu ] || features=(--features cuda,kernel-cache)
  cargo build --release --bin trainer "${features[@]}"
  trainer=target/release/trainer
fi
"$trainer" bench --bundle "$bundle" --device "$device" --rival "$rival" --json "${train[@]}" | tee "$ours"
python3 benches/table.py "$ours" "$rival"
[ "$turns" -gt 0 ] || exit 0
form=$(tail -n 1 "$rival" | python3 -c 'import json, sys; print(json.load(sys.stdin).get("what") or sys.exit("no rival ran"))')
: >"$ours.turns"
: >"$rival.turns"
for ((turn = 0; turn < turns; turn++)); do
  "$trainer" bench --bundle "$bundle" --device "$device" --batch 1 --json | tail -n 1 >>"$ours.turns"
  python3 benches/edge.py --bundle "$bundle" --device "$device" --only "$form" >>"$rival.turns"
done
python3 benches/table.py --turns "$ours.turns" "$rival.turns"
