"""Precompute with flow, end to end: videos a second, and what the same work costs with OpenCV.

    python benchmarks/precompute_flow.py [VIDEO ...] [--every 25] [--device cuda]

Ours: `i3d precompute` of the videos with all cores, from the files to finished shards. OpenCV, on
one core and in the same run: decoding and resizing by cv2, a JPEG of quality 95 a frame, and
DualTVL1 on one of so many pairs, scaled to all of them and divided by the cores, which flatters it.
The time for the 19,881 videos of Kinetics-400's validation set is scaled from both. Without a
video, a synthetic one of ten seconds is used.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import cv2
import machine
from precompute import synthetic_video

from i3d.tasks.precompute.writing import VideoSet, precompute
from i3d.video import read_video

KINETICS_VALIDATION = 19_881  # videos, CVDF's copy
SECONDS = 10  # of a video


def ours(videos, folder, device):
    """(seconds, frames) of all videos, the workers' start included."""
    source = folder / "videos" / "class"
    source.mkdir(parents=True)
    for video in videos:
        (source / video.name).symlink_to(video.resolve())
    start = time.perf_counter()
    found = precompute(
        VideoSet(folder / "videos", classes="folders"),
        folder / "shards",
        device=device,
    )
    return time.perf_counter() - start, found.frames


def by_opencv(video, every):
    """Seconds of a core for one video; its flow is measured on one of ``every`` pairs."""
    start = time.perf_counter()
    capture = cv2.VideoCapture(os.fspath(video))
    for _ in range(25 * SECONDS):
        there, frame = capture.read()
        if not there:
            break
        height, width = frame.shape[:2]
        scale = 256 / min(height, width)
        frame = cv2.resize(frame, (round(width * scale), round(height * scale)))
        cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])
    pictures = time.perf_counter() - start
    frames = read_video(video)[: 25 * SECONDS]
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    flow = cv2.optflow.DualTVL1OpticalFlow_create()
    chosen = range(every // 2, len(gray) - 1, every)
    start = time.perf_counter()
    for i in chosen:
        flow.calc(gray[i], gray[i + 1], None)
    seconds_a_pair = (time.perf_counter() - start) / len(chosen)
    return pictures + seconds_a_pair * (len(gray) - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = args.videos or [synthetic_video(folder)]
        seconds, frames = ours(videos, folder, args.device)
        opencv = sum(by_opencv(video, args.every) for video in videos) / cores
    hours = KINETICS_VALIDATION / len(videos) / 3600
    print(f"{len(videos)} videos, {frames} frames, {cores} cores, flow on {args.device}")
    for label, each in (("i3d", seconds), ("OpenCV", opencv)):
        print(
            f"  {label:8}{len(videos) / each:8.3f} videos/s; K400 validation {hours * each:8.1f} h"
        )
    result = {
        **machine.record("opencv-contrib-python-headless", "numba", "av", "torch"),
        "device": args.device,
        "videos": len(videos),
        "frames": frames,
        "seconds": seconds,
        "opencv_seconds_scaled": opencv,
        "ratio": opencv / seconds,
        "kinetics_400_validation_hours_scaled": {"i3d": hours * seconds, "opencv": hours * opencv},
    }
    machine.write(result, "precompute_flow", args.device, args.output)


if __name__ == "__main__":
    main()
