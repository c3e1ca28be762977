"""RGB precompute on one core beside ffmpeg, in one run, taking turns.

    python benchmarks/precompute.py [VIDEO ...] [--rounds 7] [--output RESULT.json]

Ours: one worker's whole work on a video (decode, 25 fps, bilinear resize to short side 256, JPEG of
quality 95, checksums). ffmpeg (the program, version 4 or later, on PATH): decode with one thread,
the same frame rate and size with its bilinear scaler, MJPEG at the quality whose bytes per frame
are nearest to ours. Both write to a file in the temporary folder; ours runs in a warm process, as
its workers do, and ffmpeg's start (measured on a one-frame video) is taken off its time. Without a
video, a synthetic one is used.
"""

import shutil
import subprocess
from pathlib import Path

import common
import cv2

from i3d.tasks.precompute.encode import VideoTask, encode_video
from i3d.tasks.precompute.options import Settings
from i3d.video import VideoReader

SECONDS = 10  # of a video that ffmpeg reads, at most


def ours(path):
    """(seconds, frames, bytes) of one video."""
    task = VideoTask(str(path), None, None, Settings(flow=False))
    seconds, result = common.timed(encode_video, task)
    sizes = result.value.rgb.sizes
    result.close()
    return seconds, len(sizes), sum(sizes)


def ffmpeg(path, size, quality, target, seconds=SECONDS):
    """(seconds, bytes) of one video."""
    command = [
        *("ffmpeg", "-y", "-nostdin", "-loglevel", "error", "-threads", "1", "-i", str(path)),
        *("-t", str(seconds), "-vf", f"fps=25,scale={size[1]}:{size[0]}:flags=bilinear"),
        *("-an", "-threads", "1", "-filter_threads", "1", "-pix_fmt", "yuvj420p"),
        *("-c:v", "mjpeg", "-qmin", "1", "-q:v", str(quality), "-f", "mjpeg", str(target)),
    ]
    seconds = common.timed(lambda: subprocess.run(command, check=True))[0]
    return seconds, target.stat().st_size


def output_size(path):
    with VideoReader(path) as reader:
        return next(iter(reader)).shape[:2]


def measure(path, target, rounds):
    """One record a video."""
    size = output_size(path)
    _, frames, our_bytes = ours(path)
    by_quality = {q: ffmpeg(path, size, q, target)[1] for q in range(1, 8)}
    quality = min(by_quality, key=lambda q: abs(by_quality[q] - our_bytes))
    median = common.medians(
        lambda: {
            "ours": ours(path)[0],
            "ffmpeg": ffmpeg(path, size, quality, target)[0],
            "start": ffmpeg(path, size, quality, target, 0.04)[0],
        },
        rounds,
    )
    seconds = median["ffmpeg"] - median["start"]
    return {
        "video": path.name,
        "frames": frames,
        "size": [int(size[1]), int(size[0])],
        "bytes_per_frame": round(our_bytes / frames),
        "ffmpeg_bytes_per_frame": round(by_quality[quality] / frames),
        "ffmpeg_quality": quality,
        "seconds": median["ours"],
        "ffmpeg_seconds": seconds,
        "ffmpeg_start_seconds": median["start"],
        "ratio": seconds / median["ours"],
    }


def main():
    parser = common.options(__doc__, rounds=7)
    parser.add_argument("videos", nargs="*", type=Path)
    args = common.parse(parser)
    if shutil.which("ffmpeg") is None:
        raise SystemExit(
            "benchmarks/precompute.py compares with the ffmpeg program, which is not installed"
        )
    cv2.setNumThreads(1)
    with common.videos_or_synthetic(args.videos) as (videos, folder):
        rows = [measure(path, folder / "out.mjpeg", args.rounds) for path in videos]
    print(f"{'video':38}{'bytes/frame':>12}{'ffmpeg':>8}{'frames/s':>10}{'ffmpeg':>8}{'ratio':>7}")
    for row in rows:
        print(
            f"{row['video'][:37]:38}{row['bytes_per_frame']:12}{row['ffmpeg_bytes_per_frame']:8}"
            f"{row['frames'] / row['seconds']:10.0f}{row['frames'] / row['ffmpeg_seconds']:8.0f}"
            f"{row['ratio']:7.2f}"
        )
    total = sum(r["ffmpeg_seconds"] for r in rows) / sum(r["seconds"] for r in rows)
    print(f"all: {total:.2f} of ffmpeg's throughput")
    first = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True)
    result = {
        "ffmpeg": first.stdout.split()[2],
        "rounds": args.rounds,
        "ratio": total,
        "videos": rows,
    }
    common.write(args, result, "av", "simplejpeg", "opencv-contrib-python-headless")


if __name__ == "__main__":
    main()
