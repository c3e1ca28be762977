"""TV-L1 flow on one thread: ours beside OpenCV's, in one run, taking turns.

    python benchmarks/flow.py [VIDEO ...] [--every 10]
    python benchmarks/flow.py --device cuda [VIDEO ...]      # see flow_gpu.py

Takes neighbouring frames at 25 fps with the short side at 256, every EVERY-th pair of them; without
a video, those of a synthetic clip. Both programs get the same gray frames. Ours builds the second
frame's pyramid anew for each pair, as it does once a frame in a video; OpenCV builds both. A pair
is "still" if its flow is under 0.05 px on average: there both stop early and fixed costs count.
"""

import os

os.environ["NUMBA_NUM_THREADS"] = "1"

import sys
from pathlib import Path

import common
import cv2
import numpy as np

from i3d.flow import TVL1, cpu

SHORT_SIDE = 256
FPS = 25
STILL_PIXELS = 0.05


def gray_frames(path):
    """uint8 (H, W) frames at 25 fps, as the preprocessing does: by time stamp, bilinear resize."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        tick = float(stream.time_base)
        start, due = None, 0
        for frame in container.decode(stream):
            start = frame.pts if start is None else start
            seconds = (frame.pts - start + 0.5) * tick
            if seconds < due / FPS:
                continue
            image = frame.to_ndarray(format="rgb24")
            scale = SHORT_SIDE / min(image.shape[:2])
            size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
            while due / FPS <= seconds:
                due += 1
            yield cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def synthetic_frames(count=31):
    """A textured background that pans while a disc crosses it; the last third stands still."""
    noise = np.random.default_rng(0).normal(size=(2, 400, 600)).astype(np.float32)
    layers = [common.texture(n, (1, 3, 12)) for n in noise]
    y, x = np.mgrid[:256, :340].astype(np.float32)
    for index in range(count):
        t = min(index, count * 2 // 3)
        back = cv2.remap(layers[0], x + 20 + 2.3 * t, y + 20 + 0.7 * t, cv2.INTER_CUBIC)
        disc = cv2.remap(layers[1], x + 150 - 4 * t, y + 60, cv2.INTER_CUBIC)
        inside = (x - 60 - 6 * t) ** 2 + (y - 128) ** 2 < 50**2
        yield np.clip(np.where(inside, disc, back), 0, 255).astype(np.uint8)


def compare(name, frames, every):
    """One record a pair."""
    parameters, opencv = TVL1(), cv2.optflow.DualTVL1OpticalFlow_create()
    records = []
    previous = solver = first = second = None
    for index, frame in enumerate(frames):
        if previous is not None and index % every == 0:
            solver = solver or cpu.PairSolver(*frame.shape, parameters)
            first = cpu.build_scales(previous, parameters, spare=first)
            scale_seconds, second = common.timed(cpu.build_scales, frame, parameters, second)
            flow_seconds, ours = common.timed(solver.flow, first, second)
            opencv_seconds, reference = common.timed(opencv.calc, previous, frame, None)
            distance = np.hypot(*np.moveaxis(ours - reference, -1, 0))
            records.append(
                {
                    "video": name,
                    "frame": index - 1,
                    "size": f"{frame.shape[1]}x{frame.shape[0]}",
                    "ours_seconds": scale_seconds + flow_seconds,
                    "opencv_seconds": opencv_seconds,
                    "mean_flow_pixels": float(np.hypot(*np.moveaxis(reference, -1, 0)).mean()),
                    "end_point_difference_pixels": float(distance.mean()),
                    "share_over_half_a_pixel": float((distance > 0.5).mean()),
                    "share_not_identical": float((distance > 0).mean()),
                }
            )
        previous = frame
    return records


def summarise(records):
    ours = sum(r["ours_seconds"] for r in records)
    opencv = sum(r["opencv_seconds"] for r in records)
    return {
        "pairs": len(records),
        "ours_pairs_per_second": len(records) / ours,
        "opencv_pairs_per_second": len(records) / opencv,
        "ratio": opencv / ours,
        **{
            key: float(np.mean([r[key] for r in records]))
            for key in (
                "end_point_difference_pixels",
                "share_over_half_a_pixel",
                "share_not_identical",
            )
        },
    }


def warm_up():
    """Compile or load the kernels."""
    scales = [cpu.build_scales(frame, TVL1()) for frame in np.zeros((2, 32, 32), np.uint8)]
    cpu.PairSolver(32, 32, TVL1()).flow(*scales)


def read_clips(videos):
    """(name, frames) of every video, or of the synthetic clip."""
    clips = [(video.name, gray_frames(video)) for video in videos]
    return clips or [("synthetic", synthetic_frames())]


def main():
    parser = common.options(__doc__, gpu=True)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--every", type=int, default=10, help="compare every N-th pair")
    args = common.parse(parser)
    if args.device == "cuda":
        import flow_gpu

        sys.exit(flow_gpu.run(args, lambda: read_clips(args.videos)))
    cv2.setNumThreads(1)
    ready_seconds, _ = common.timed(warm_up)
    records = []
    for name, frames in read_clips(args.videos):
        records += compare(name, frames, args.every)
    still = [r for r in records if r["mean_flow_pixels"] < STILL_PIXELS]
    moving = [r for r in records if r["mean_flow_pixels"] >= STILL_PIXELS]
    groups = {"all": records, "moving": moving, "still": still}
    for record in records:
        groups.setdefault(record["video"], []).append(record)
    summary = {name: summarise(group) for name, group in groups.items() if group}

    print("pairs/s: pairs of frames a second on one thread; epd: mean end-point difference, pixels")
    print(
        f"{'':36} {'pairs':>5} {'ours/s':>7} {'OpenCV/s':>8} {'ratio':>6} {'epd':>9} {'>0.5 px':>8}"
        f" {'not identical':>14}"
    )
    for name, s in summary.items():
        print(
            f"{name:36} {s['pairs']:5} {s['ours_pairs_per_second']:7.2f} "
            f"{s['opencv_pairs_per_second']:8.2f} {s['ratio']:6.1f} "
            f"{s['end_point_difference_pixels']:9.6f} {s['share_over_half_a_pixel']:8.3%} "
            f"{s['share_not_identical']:14.3%}"
        )
    print(f"compiling or loading the kernels took {ready_seconds:.1f} s")

    result = {
        "threads": 1,
        "ready_seconds": ready_seconds,
        "summary": summary,
        "pairs": records,
    }
    common.write(args, result, "numpy", "numba", "llvmlite", "opencv-contrib-python-headless")


if __name__ == "__main__":
    main()
