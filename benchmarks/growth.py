"""How time and memory grow with frames, batch, picture size and workers.

    python benchmarks/growth.py [--device cuda] [--width 1]

Each point is a process of its own, so that its peak of memory is its own. Frames, batch and size: a
forward pass; on a CPU the resident set's peak, on a GPU the allocator's; long clips go through in
windows. Workers: precompute of a synthetic video's frames, eight times; the largest worker's peak.
"""

import argparse
import json
import resource
import subprocess
import sys

import common

# (batch, frames, size) along each axis; 64 frames of 224 pixels are where the axes meet.
AXES = {
    "frames": [(1, frames, 224) for frames in (64, 128, 250, 500, 1000, 2000)],
    "batch": [(batch, 64, 224) for batch in (1, 2, 4, 8)],
    "size": [(1, 64, size) for size in (112, 160, 224, 320, 448)],
}
WORKERS = (1, 2, 4)
VIDEOS = 8  # that they share


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
        seconds, _ = common.timed(network, clip)
    return {
        "batch": batch,
        "frames": frames,
        "size": size,
        "seconds": seconds,
        "clip_bytes": clip.numel() * 4,
        "peak_bytes": memory(device) - idle,
    }


def with_workers(workers):
    """Seconds of a precompute of frames, and bytes of the largest worker at its peak."""
    from i3d.tasks.precompute.options import Settings, Work
    from i3d.tasks.precompute.writing import precompute

    with common.videos_or_synthetic([]) as (videos, folder):
        dataset = common.dataset_of(videos * VIDEOS, folder)
        options = {"settings": Settings(flow=False), "work": Work(workers=workers)}
        seconds, _ = common.timed(lambda: precompute(dataset, folder / "shards", **options))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"workers": workers, "seconds": seconds, "peak_bytes": peak}


def memory(device):
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_a_process(args, *what):
    command = [sys.executable, __file__, "--device", args.device, "--width", args.width, *what]
    run = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


def main():
    parser = common.options(__doc__, gpu=True)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--point", type=int, nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    args = common.parse(parser)
    if args.point or args.share:
        run = with_workers(args.share) if args.share else None
        print(json.dumps(run or point(*args.point, args.device, args.width)))
        return
    measured = {}
    for axis, points in AXES.items():
        measured[axis] = []
        for sizes in points:
            found = in_a_process(args, "--point", *sizes)
            measured[axis].append(found)
            gigabytes = (found["peak_bytes"] / 1e9, found["clip_bytes"] / 1e9)
            print(
                f"  {axis:8}{sizes!s:16}{found['seconds']:8.2f} s "
                f"{gigabytes[0]:7.2f} GB, of it the clip {gigabytes[1]:.2f}"
            )
    if args.device == "cpu":
        measured["workers"] = [in_a_process(args, "--share", workers) for workers in WORKERS]
        for found in measured["workers"]:
            rate, megabytes = VIDEOS / found["seconds"], found["peak_bytes"] / 1e6
            print(f"  workers {found['workers']:<16}{rate:8.2f} videos/s, {megabytes:.0f} MB each")
    common.write(args, {"width": args.width, "points": measured}, "torch")


if __name__ == "__main__":
    main()
