#!/usr/bin/env bash
# Times the paper-sized networks on an NVIDIA GPU beside PyTorch, and prints a table.
# usage: benches/paper.sh [OUT]     OUT gets the raw lines (default: target/paper-bench)
# Needs a GPU with 24 GB for frames, 80 GB for the training step; python3 with torch, torchvision and diffusers.
# PAPER_BENCH names a bench that is built already; without it cargo builds one.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/paper-bench}
mkdir -p "$out"
bench=${PAPER_BENCH:-}
if [ -z "$bench" ]; then
  bench=$(cargo build --release --features cuda --bench paper --message-format json |
    python3 -c 'import json, sys; print([m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")][-1])')
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/gpu"

# Peak memory as the driver sees it, megabytes.
measured() {
  local name=$1
  shift
  nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 100 >"$out/$name.memory" &
  local watch=$!
  "$@" >"$out/$name.jsonl" 2>"$out/$name.err" || echo "$name failed: $(tail -n 3 "$out/$name.err")"
  kill $watch
  wait $watch 2>/dev/null || true
}
for name in ${PAPER_RUNS:-f32 f16 train}; do
  case $name in
    f32) measured f32 "$bench" --device cuda --check; measured f32-torch python3 benches/paper.py ;;
    f16) measured f16 "$bench" --device cuda --check --half; measured f16-torch python3 benches/paper.py --half ;;
    train) measured train "$bench" --device cuda --train; measured train-torch python3 benches/paper.py --train ;;
  esac
done

python3 - "$out" <<'PY'
import json, pathlib, sys

out = pathlib.Path(sys.argv[1])
rows = lambda name: [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines() if line.startswith("{")]
peak = lambda name: max(int(line) for line in (out / f"{name}.memory").read_text().split()) / 1024
print(f"{'':28}{'dsad ms':>10}{'torch ms':>10}{'torch/dsad':>12}")
for name in ("f32", "f16", "train"):
    if not (out / f"{name}.jsonl").exists():
        continue
    theirs = {row["what"]: row for row in rows(f"{name}-torch")}
    for row in rows(name):
        if "ms" not in row:
            print(f"{name} {row['what']}: relative error {row['relative_error']:.2e}")
            continue
        other = theirs.get(row["what"], {}).get("ms", float("nan"))
        print(f"{name + ' ' + row['what']:28}{row['ms']:10.1f}{other:10.1f}{other / row['ms']:12.2f}")
    print(f"{name + ' peak memory, GiB':28}{peak(name):10.1f}{peak(name + '-torch'):10.1f}")
PY
