"""How soon `i3d predict --every` says something of a 10 s video of 1080p, and where time goes.

    python benchmarks/predict.py --checkpoint rgb_scratch_kinetics400

The command is started anew each time. Beside it, each by itself in a new process: Python and the
imports, the network, decoding 64 frames, and the first forward pass. Decoding takes place while
PyTorch is imported, so that the parts add up to more than the first window.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
from common import options, parse, synthetic_video, write

from i3d.video import VideoReader
from i3d.video.writer import Mp4Writer

EVERY = "2.56"
PARTS = f"""
import json, sys, time
start = time.perf_counter()
import i3d.tasks.predict.run
from i3d.tasks.predict.predictor import Predictor
imported = time.perf_counter()
predictor = Predictor(sys.argv[2], device="cpu")
loaded = time.perf_counter()
from i3d.video import read_video
frames = read_video(sys.argv[1], end_seconds={EVERY})
decoded = time.perf_counter()
predictor(frames, every_seconds={EVERY})
computed = time.perf_counter()
times = [start, imported, loaded, decoded, computed]
names = ["imports", "network", "decode", "forward"]
print(json.dumps({{n: b - a for n, a, b in zip(names, times, times[1:])}}))
"""


def run_command(video: Path, checkpoint: str) -> dict[str, float]:
    """Seconds from the start to the first window, and to the end."""
    command = [sys.executable, "-m", "i3d", "predict", str(video), "--checkpoint", checkpoint]
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, "--every", EVERY, "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        first = next(process.stderr)
        seconds = time.perf_counter() - start
        process.stderr.read()
    assert process.returncode == 0, first
    return {"first window": seconds, "end": time.perf_counter() - start}


def measure_parts(video: Path, checkpoint: str) -> dict[str, float]:
    """Seconds of each part, in a process of its own."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PARTS, str(video), checkpoint],
        capture_output=True,
        text=True,
        check=True,
    )
    parts = json.loads(done.stdout)
    return {"Python": time.perf_counter() - start - sum(parts.values()), **parts}


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--checkpoint", default="rgb_scratch_kinetics400")
    args = parse(parser)
    with tempfile.TemporaryDirectory() as name:
        video = Path(name) / "1080p.mp4"
        with (
            VideoReader(synthetic_video(Path(name)), short_side=None) as frames,
            Mp4Writer(video, width=1920, height=1080, fps=25) as writer,
        ):
            for frame in frames:
                writer.write(cv2.resize(frame, (1920, 1080)))
        rounds = [
            run_command(video, args.checkpoint) | measure_parts(video, args.checkpoint)
            for _ in range(1 + args.rounds)
        ][1:]
    seconds = {key: round(statistics.median(r[key] for r in rounds), 3) for key in rounds[0]}
    for key, value in seconds.items():
        print(f"{key:14}{value:8.2f} s")
    write(args, {"rounds": args.rounds, "seconds": seconds})


if __name__ == "__main__":
    main()
