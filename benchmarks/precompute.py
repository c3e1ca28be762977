"""RGB precompute on one core beside ffmpeg, in one run, taking turns.

    python benchmarks/precompute.py [VIDEO ...] [--rounds 7] [--output RESULT.json]

Ours: one worker's whole work on a video (decode, 25 fps, bilinear resize to short side 256, JPEG of
quality 95, checksums). ffmpeg (the program, version 4 or later, on PATH): decode with one thread,
the same frame rate and size with its bilinear scaler, MJPEG at the quality whose bytes per frame
are nearest to ours. Both write to a file in the temporary folder; ours runs in a warm process, as
its workers do, and ffmpeg's start (measured on a one-frame video) is taken off its time. Without a
video, a synthetic one is used.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import av
import cv2
import machine
import numpy as np

from i3d.tasks.precompute.writing import Settings, VideoTask, encode_video
from i3d.video import VideoReader

SECONDS = 10


def synthetic_video(folder):
    """Ten seconds of a textured background that pans, 1280x720 h264."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(900, 1800, 3)).astype(np.float32)
    texture = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (2, 8, 32))
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    path = folder / "synthetic_1280x720.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for i in range(SECONDS * 25):
            view = np.ascontiguousarray(texture[i // 2 : i // 2 + 720, 2 * i : 2 * i + 1280])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def ours(path):
    """(seconds, frames, bytes) of one video."""
    start = time.perf_counter()
    result = encode_video(VideoTask(str(path), None, None, Settings(flow=False)))
    seconds = time.perf_counter() - start
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
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start, target.stat().st_size


def output_size(path):
    with VideoReader(path) as reader:
        return next(iter(reader)).shape[:2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if shutil.which("ffmpeg") is None:
        raise SystemExit(
            "benchmarks/precompute.py compares with the ffmpeg program, which is not installed"
        )
    cv2.setNumThreads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = folder / "out.mjpeg"
        for path in args.videos or [synthetic_video(folder)]:
            size = output_size(path)
            _, frames, our_bytes = ours(path)
            by_quality = {q: ffmpeg(path, size, q, target)[1] for q in range(1, 8)}
            quality = min(by_quality, key=lambda q: abs(by_quality[q] - our_bytes))
            times = {"ours": [], "ffmpeg": [], "start": []}
            for _ in range(args.rounds):
                times["ours"].append(ours(path)[0])
                times["ffmpeg"].append(ffmpeg(path, size, quality, target)[0])
                times["start"].append(ffmpeg(path, size, quality, target, 0.04)[0])
            median = {k: statistics.median(v) for k, v in times.items()}
            rows.append(
                {
                    "video": path.name,
                    "frames": frames,
                    "size": [int(size[1]), int(size[0])],
                    "bytes_per_frame": round(our_bytes / frames),
                    "ffmpeg_bytes_per_frame": round(by_quality[quality] / frames),
                    "ffmpeg_quality": quality,
                    "seconds": median["ours"],
                    "ffmpeg_seconds": median["ffmpeg"] - median["start"],
                    "ffmpeg_start_seconds": median["start"],
                }
            )
    print(f"{'video':38}{'bytes/frame':>12}{'ffmpeg':>8}{'frames/s':>10}{'ffmpeg':>8}{'ratio':>7}")
    for row in rows:
        row["ratio"] = row["ffmpeg_seconds"] / row["seconds"]
        print(
            f"{row['video'][:37]:38}{row['bytes_per_frame']:12}{row['ffmpeg_bytes_per_frame']:8}"
            f"{row['frames'] / row['seconds']:10.0f}{row['frames'] / row['ffmpeg_seconds']:8.0f}"
            f"{row['ratio']:7.2f}"
        )
    total = sum(r["ffmpeg_seconds"] for r in rows) / sum(r["seconds"] for r in rows)
    print(f"all: {total:.2f} of ffmpeg's throughput")
    first = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True)
    result = {
        **machine.record("av", "simplejpeg", "opencv-contrib-python-headless"),
        "ffmpeg": first.stdout.split()[2],
        "rounds": args.rounds,
        "ratio": total,
        "videos": rows,
    }
    machine.write(result, "precompute", output=args.output)


if __name__ == "__main__":
    main()
