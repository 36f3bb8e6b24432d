#!/usr/bin/env bash
# Times the frame of an edge bundle beside PyTorch and ONNX Runtime, with the same weights, and prints the tables of README.md.
# usage: benches/edge.sh [BUNDLE] [DEVICE] [--train]     default: configs/bundles/demo cpu; --train: also training steps
# Needs python3 with what benches/edge.py names. EDGE_TRAINER names a release build of trainer; without it cargo makes one.
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=${1:-configs/bundles/demo}
device=${2:-cpu}
train=("${@:3}")
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
