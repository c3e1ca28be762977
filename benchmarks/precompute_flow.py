"""Precompute with flow, end to end: videos a second, and what the same work costs with OpenCV.

    python benchmarks/precompute_flow.py [VIDEO ...] [--every 25] [--device cuda]

Ours: `i3d precompute` of the videos with all cores, from the files to finished shards. OpenCV, on
one core and in the same run: decoding and resizing by cv2, a JPEG of quality 95 a frame, and
DualTVL1 on one of so many pairs, scaled to all of them and divided by the cores, which flatters it.
The time for the 19,881 videos of Kinetics-400's validation set is scaled from both. Without a
video, a synthetic one of ten seconds is used.
"""

import os
from pathlib import Path

import common
import cv2

from i3d.tasks.precompute.options import Work
from i3d.tasks.precompute.writing import precompute
from i3d.video import read_video

SECONDS = 10  # of a video


def ours(videos, folder, device):
    """(seconds, frames) of all videos, the workers' start included."""
    dataset = common.dataset_of(videos, folder)
    seconds, found = common.timed(
        lambda: precompute(dataset, folder / "shards", work=Work(device=device))
    )
    return seconds, found.frames


def pictures_by_opencv(video):
    """Decode, resize and compress the frames of one video."""
    capture = cv2.VideoCapture(os.fspath(video))
    for _ in range(25 * SECONDS):
        there, frame = capture.read()
        if not there:
            break
        height, width = frame.shape[:2]
        scale = 256 / min(height, width)
        frame = cv2.resize(frame, (round(width * scale), round(height * scale)))
        cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])


def by_opencv(video, every):
    """Seconds of a core for one video; its flow is measured on one of ``every`` pairs."""
    seconds, _ = common.timed(pictures_by_opencv, video)
    frames = read_video(video)[: 25 * SECONDS]
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    flow = cv2.optflow.DualTVL1OpticalFlow_create()
    chosen = range(every // 2, len(gray) - 1, every)
    of_chosen, _ = common.timed(lambda: [flow.calc(gray[i], gray[i + 1], None) for i in chosen])
    return seconds + of_chosen / len(chosen) * (len(gray) - 1)


def main():
    parser = common.options(__doc__, gpu=True)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--every", type=int, default=25, help="OpenCV's flow of every N-th pair")
    args = common.parse(parser)
    cv2.setNumThreads(1)
    cores = len(os.sched_getaffinity(0))
    with common.videos_or_synthetic(args.videos) as (videos, folder):
        seconds, frames = ours(videos, folder, args.device)
        opencv = sum(by_opencv(video, args.every) for video in videos) / cores
    hours = common.KINETICS_VALIDATION / len(videos) / 3600
    print(f"{len(videos)} videos, {frames} frames, {cores} cores, flow on {args.device}")
    for label, each in (("i3d", seconds), ("OpenCV", opencv)):
        print(
            f"  {label:8}{len(videos) / each:8.3f} videos/s; K400 validation {hours * each:8.1f} h"
        )
    result = {
        "device": args.device,
        "videos": len(videos),
        "frames": frames,
        "seconds": seconds,
        "opencv_seconds_scaled": opencv,
        "ratio": opencv / seconds,
        "kinetics_400_validation_hours_scaled": {"i3d": hours * seconds, "opencv": hours * opencv},
    }
    common.write(args, result, "opencv-contrib-python-headless", "numba", "av", "torch")


if __name__ == "__main__":
    main()
