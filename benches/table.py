#!/usr/bin/env python3
"""The tables of README.md and docs/performance.md, from what was measured: nobody copies a figure by hand.

    python3 benches/table.py OURS [RIVAL]
    python3 benches/table.py --turns OURS RIVAL
    python3 benches/table.py --test

OURS are the lines of `trainer bench --json`, RIVAL those of benches/edge.py, both in files; benches/edge.sh makes them and calls this. With --turns
each file holds several runs, made in turn.
"""

import json
import statistics
import sys


def read(path):
    with open(path) as file:
        return [json.loads(line) for line in file if line.startswith("{")]


def number(value):
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def beside(what, ours, theirs):
    """Ours in bold, the rival's rows with the ratio of the times."""
    rows = [[f"**dsad**, {what}", f"**{number(ours)}**", ""]]
    for row in theirs:
        if "error" in row:
            rows.append([row["what"], f"not run: {row['error']}", ""])
        else:
            rows.append([row["what"], number(row["ms"]), f"{ours / row['ms']:.2f}"])
    return table(["what", "ms", "dsad / it"], rows)


def tables(ours, rival):
    *rows, summary = ours
    timed = [row for row in rows if "ms" in row]
    find = lambda words, batch: [row for row in timed if row["what"].startswith(words) and row["pictures"] == batch]
    out = []
    fastest = min(find("frame at 2 steps", summary["batch"]), key=lambda row: row["ms"])
    last = rival[-1] if rival else {}
    frames = [row for row in rival[:-1] if "what" in row and "training step" not in row["what"] and "worst" not in row]
    title = f"{summary['profile']}, {summary['size'][0]}x{summary['size'][1]}, {summary['device']}, batch {summary['batch']}"
    out.append(f"{title}, 2 steps:\n\n" + beside(fastest["what"], fastest["ms"], frames))
    shown = [row for row in timed if row["what"].startswith("frame at")]
    batches = sorted({row["pictures"] for row in shown})
    names = list(dict.fromkeys(row["what"] for row in shown))
    value = lambda name, batch: next((number(row["ms"]) for row in shown if (row["what"], row["pictures"]) == (name, batch)), "-")
    head = ["frame, ms"] + [f"batch {batch}" for batch in batches]
    out.append(table(head, [[name, *(value(name, batch) for batch in batches)] for name in names]))
    parts = [row for row in timed if row["pictures"] == summary["batch"] and not row["what"].startswith(("frame", "training", "making"))]
    out.append(table(["part alone", "ms"], [[row["what"], number(row["ms"])] for row in parts]))
    facts = [
        ("start to ready, cold, s", summary.get("ready_cold_s")),
        ("start to ready, warm, s", summary.get("ready_warm_s")),
        ("peak resident, MB", summary.get("peak_rss_mb")),
        ("on the device, MB", summary.get("device_mb")),
    ]
    out.append(table(["what", ""], [[what, number(value)] for what, value in facts]))
    for step in (row for row in timed if row["what"].startswith("training step: ")):
        theirs = [row for row in rival[:-1] if row.get("what", "").endswith(step["what"]) and row.get("pictures", step["pictures"]) == step["pictures"]]
        rate = f"{step['what']}, batch {step['pictures']}, {number(step['pictures_per_s'])} pictures/s"
        out.append(beside(rate, step["ms"], theirs))
    if "ms" in last:
        if summary["ratio"] is None:
            raise SystemExit("OURS knows nothing of a rival: run `trainer bench` with --rival RIVAL")
        assert abs(summary["frame_ms"] / last["ms"] - summary["ratio"]) < 1e-6, "the rival's lines are of another run"
    return "\n\n".join(out)


def turns(ours, rival):
    """Whole frames of several runs in turn, as they were made; three ratios, as pairs alone say less on a host of changing pace."""
    ours = [row["frame_ms"] for row in ours if "frame_ms" in row]
    # The last line of a run says its fastest form once more.
    runs = [row for row in rival if "ms" in row and "steps" not in row]
    rows = [["**dsad**", ", ".join(number(ms) for ms in ours), ""]]
    for what in dict.fromkeys(row["what"] for row in runs):
        theirs = [row["ms"] for row in runs if row["what"] == what]
        pairs = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        ratios = min(ours) / min(theirs), statistics.median(ours) / statistics.median(theirs), pairs
        rows.append([what, ", ".join(number(ms) for ms in theirs), ", ".join(f"{ratio:.2f}" for ratio in ratios)])
    return table(["what", "ms, runs in turn", "dsad / it: least of each, medians, median of pairs"], rows)


def test():
    ours = [
        {"what": "start to ready, cold", "ready_s": 0.7},
        {"what": "features", "pictures": 1, "ms": 3.21},
        {"what": "frame at 2 steps", "pictures": 1, "ms": 61.49},
        {"what": "frame at 2 steps", "pictures": 8, "ms": 521.4},
        {"what": "training step: denoiser", "pictures": 16, "ms": 900.0, "pictures_per_s": 17.8},
        {"profile": "edge-small", "size": [256, 256], "device": "cpu", "batch": 1, "frame_ms": 61.49, "ratio": 61.49 / 34.5,
         "ready_cold_s": 0.7, "ready_warm_s": 0.6, "peak_rss_mb": 214.0, "device_mb": None},
    ]
    rival = [
        {"what": "golden maps", "worst": 1e-5},
        {"what": "PyTorch float32, eager", "ms": 71.4},
        {"what": "PyTorch float32, compiled", "error": "no compiler"},
        {"what": "ONNX Runtime float32", "ms": 34.5},
        {"what": "PyTorch float32, eager, training step: denoiser", "ms": 450.0, "pictures": 16},
        {"what": "ONNX Runtime float32", "ms": 34.5},
    ]
    text = tables(ours, rival)
    for row in [
        "| **dsad**, frame at 2 steps | **61.5** |  |",
        "| PyTorch float32, eager | 71.4 | 0.86 |",
        "| PyTorch float32, compiled | not run: no compiler |  |",
        "| ONNX Runtime float32 | 34.5 | 1.78 |",
        "| frame at 2 steps | 61.5 | 521 |",
        "| features | 3.21 |",
        "| start to ready, warm, s | 0.60 |",
        "| on the device, MB | - |",
        "| **dsad**, training step: denoiser, batch 16, 17.8 pictures/s | **900** |  |",
        "| PyTorch float32, eager, training step: denoiser | 450 | 2.00 |",
    ]:
        assert text.count(row) == 1, f"{row}\n{text}"
    assert "| **dsad**, frame at 2 steps | **61.5** |  |" in tables(ours, [])
    runs = [{"what": "ONNX Runtime float32", "ms": ms} for ms in (44.0, 40.0, 36.0)]
    text = turns([{"frame_ms": ms} for ms in (33.0, 30.0, 45.0)], [rival[0], *runs, rival[-1] | {"steps": 2}])
    assert "| **dsad** | 33.0, 30.0, 45.0 |  |" in text
    assert "| ONNX Runtime float32 | 44.0, 40.0, 36.0 | 0.83, 0.82, 0.75 |" in text


if sys.argv[1:] == ["--test"]:
    test()
elif len(sys.argv) == 4 and sys.argv[1] == "--turns":
    print(turns(read(sys.argv[2]), read(sys.argv[3])))
elif len(sys.argv) in (2, 3) and not sys.argv[1].startswith("-"):
    print(tables(read(sys.argv[1]), read(sys.argv[2]) if len(sys.argv) == 3 else []))
else:
    sys.exit(__doc__)
