#!/usr/bin/env bash
# Times the frame of an edge bundle beside PyTorch and ONNX Runtime, with the same weights, and prints the tables of README.md.
# usage: benches/edge.sh [BUNDLE] [DEVICE] [--train] [--turns N [--against WORDS]]     default: configs/bundles/demo cpu
#   --train          also training steps
#   --turns N        then the frame and the rival's fastest form, N times in turn: a shared host's pace changes from minute to minute
#   --against WORDS  in turn with the forms whose name has these words, as ONNX: the fastest of a single pass may owe that to the pace
# Needs python3 with what benches/edge.py names. EDGE_TRAINER names a release build of trainer; without it cargo makes one.
set -euo pipefail
cd "$(dirname "$0")/.."
usage() {
  echo "usage: benches/edge.sh [BUNDLE] [DEVICE] [--train] [--turns N [--against WORDS]]" >&2
  exit 2
}
train=()
turns=0
form=
places=()
while [ $# -gt 0 ]; do
  case $1 in
    --train) train=(--train) ;;
    --turns)
      turns=${2:-}
      [[ $turns =~ ^[1-9][0-9]*$ ]] || usage
      shift
      ;;
    --against)
      form=${2:-}
      [[ -n $form && $form != -* ]] || usage
      shift
      ;;
    -*) usage ;;
    *) places+=("$1") ;;
  esac
  shift
done
[[ -z $form || $turns -gt 0 ]] || usage
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
[ -n "$form" ] || form=$(tail -n 1 "$rival" | python3 -c 'import json, sys; print(json.load(sys.stdin).get("what") or sys.exit("no rival ran"))')
if ! grep '"ms"' "$rival" | grep -qF -- "$form"; then
  echo "no form that ran has the words '$form'" >&2
  exit 1
fi
: >"$ours.turns"
: >"$rival.turns"
for ((turn = 0; turn < turns; turn++)); do
  "$trainer" bench --bundle "$bundle" --device "$device" --batch 1 --json | tail -n 1 >>"$ours.turns"
  python3 benches/edge.py --bundle "$bundle" --device "$device" --only "$form" >>"$rival.turns"
done
python3 benches/table.py --turns "$ours.turns" "$rival.turns"
