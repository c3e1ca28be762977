"""How time and memory grow with frames, batch and picture size.

    python benchmarks/growth.py [--device cuda] [--width 1]

Each point is a forward pass in a process of its own, so that its peak of memory is its own: on a
CPU the resident set's, on a GPU the allocator's. Long clips go through in windows.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import machine

# (batch, frames, size) along each axis; 64 frames of 224 pixels are where the axes meet.
AXES = {
    "frames": [(1, frames, 224) for frames in (64, 128, 250, 500, 1000, 2000)],
    "batch": [(batch, 64, 224) for batch in (1, 2, 4, 8)],
    "size": [(1, 64, size) for size in (112, 160, 224, 320, 448)],
}


def point(batch, frames, size, device, width):
    """Seconds of a pass, bytes of the clip, and bytes at the peak beyond the idle process."""
    import torch

    from i3d.models.i3d import I3D

    network = I3D("rgb", 400, width=width).fold().to(device)
    small = torch.zeros(1, 3, 16, 32, 32, device=device)
    with torch.inference_mode():
        network(small)  # what the first pass of a process costs is not this one's
        idle = memory(device)
        clip = torch.zeros(batch, 3, frames, size, size, device=device)
        clip.uniform_(-1, 1)
        start = time.perf_counter()
        network(clip)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return {
        "batch": batch,
        "frames": frames,
        "size": size,
        "seconds": seconds,
        "clip_bytes": clip.numel() * 4,
        "peak_bytes": memory(device) - idle,
    }


def memory(device):
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--point", type=int, nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(point(*args.point, args.device, args.width)))
        return
    measured = {}
    for axis, points in AXES.items():
        measured[axis] = []
        for sizes in points:
            command = [sys.executable, __file__, "--device", args.device, "--width", args.width]
            command += ["--point", *sizes]
            run = subprocess.run(
                list(map(str, command)), check=True, capture_output=True, text=True
            )
            found = json.loads(run.stdout)
            measured[axis].append(found)
            gigabytes = (found["peak_bytes"] / 1e9, found["clip_bytes"] / 1e9)
            print(
                f"  {axis:8}{sizes!s:16}{found['seconds']:8.2f} s "
                f"{gigabytes[0]:7.2f} GB, of it the clip {gigabytes[1]:.2f}"
            )
    result = {
        "command": f"python benchmarks/growth.py --device {args.device} --width {args.width:g}",
        "machine": machine.describe(),
        "versions": machine.versions("torch"),
        "points": measured,
    }
    name = "growth" if args.device == "cpu" else "growth-cuda"
    output = args.output or Path(f"benchmarks/results/{name}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
