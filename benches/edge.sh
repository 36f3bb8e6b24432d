#!/usr/bin/env bash
# Times the frame of an edge bundle beside PyTorch and ONNX Runtime, with the same weights, and says ours / theirs.
# usage: benches/edge.sh [BUNDLE] [DEVICE]     default: configs/bundles/demo cpu
# Needs python3 with what benches/edge.py names. EDGE_TRAINER names a release build of trainer; without it cargo makes one.
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=${1:-configs/bundles/demo}
device=${2:-cpu}
rival=target/edge-rival-${device%%:*}.jsonl
mkdir -p target
python3 benches/edge.py --bundle "$bundle" --device "$device" | tee "$rival"
trainer=${EDGE_TRAINER:-}
if [ -z "$trainer" ]; then
  features=()
  [ "$device" = cpu ] || features=(--features cuda)
  cargo build --release --bin trainer "${features[@]}"
  trainer=target/release/trainer
fi
"$trainer" bench --bundle "$bundle" --device "$device" --rival "$rival"
