"""Draw the results of the benchmarks: docs/pictures/performance.png and growth.png.

    python benchmarks/plot.py

Reads what lies in benchmarks/results/. Left, every peer's and limit's time over ours, on a
logarithmic axis; right, how time and memory of a forward pass grow.
"""

import json
from pathlib import Path

from common import RESULTS
from matplotlib.figure import Figure

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
DOTS_PER_INCH = 130


def read(name):
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def ratios():
    """(stage, peer, its time over ours); above 1 it is slower than ours."""
    rows = []
    if found := read("forward"):
        ours = found["seconds"]["i3d"]
        rows += [("forward", k, v / ours) for k, v in found["seconds"].items() if k != "i3d"]
    if found := read("flow"):
        rows.append(("TV-L1", "OpenCV", found["summary"]["all"]["ratio"]))
    if found := read("precompute"):
        rows.append(("precompute RGB", "ffmpeg", found["ratio"]))
    if found := read("precompute_flow"):
        rows.append(("precompute with flow", "OpenCV", found["ratio"]))
    if found := read("loader"):
        times = found["milliseconds_a_video"]
        ours = times["read"] + times["decode"] + times["copy"]
        rows.append(("loader", "WebDataset + cv2", times["webdataset"] / ours))
        rows.append(("loader", "decoding alone", times["limit"] / ours))
    return rows


def draw_ratios(path):
    rows = ratios()
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    labels = [f"{stage}: {peer}" for stage, peer, _ in rows]
    values = [value for *_, value in rows]
    bars = axes.barh(labels, values, color=["C0" if v >= 1 else "C1" for v in values], height=0.6)
    axes.bar_label(bars, [f" {v:.2f}" for v in values])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("time of the peer or the limit, ours = 1")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def draw_growth(path):
    found = read("growth")
    if found is None:
        return
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    grid = figure.subplots(2, len(found["points"]), sharex="col")
    for column, (axis, points) in enumerate(found["points"].items()):
        x = [p[axis] for p in points]
        time, memory = grid[0][column], grid[1][column]
        time.plot(x, [p["seconds"] for p in points], "o-", markersize=4)
        memory.plot(x, [p["peak_bytes"] / 1e9 for p in points], "o-", markersize=4, label="peak")
        if "clip_bytes" in points[0]:
            clips = [p["clip_bytes"] / 1e9 for p in points]
            memory.plot(x, clips, "o:", markersize=3, label="clip")
        labels = {"size": "pixels a side", "workers": "workers of precompute; GB of each"}
        memory.set_xlabel(labels.get(axis, axis))
        for axes in (time, memory):
            axes.set_ylim(0, None)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("seconds")
    grid[1][0].set_ylabel("GB")
    grid[1][0].legend(frameon=False)
    figure.savefig(path, dpi=DOTS_PER_INCH)


if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    draw_ratios(PICTURES / "performance.png")
    draw_growth(PICTURES / "growth.png")
