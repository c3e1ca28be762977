"""Precompute RGB frames and TV-L1 flow of class folders under the options of the Chainer program.

    python3 examples/i3d/precompute_frames_flow.py DIR OUT [--num_preprocess_workers 4]
        [--no_compute_flow] [--num_samples_per_shard 128] [--print_progress_num_shards 1]
        [--skip_video_check]

DIR holds a folder of videos for each class, OUT gets the shards; both may be URLs. As before, whole
videos are taken, and under mpiexec the processes share the work. Labels are positions in the list
of Kinetics that has all the folders' names; ``--classes folders`` counts the sorted folders that
are there, as the Chainer program did. Further options are those of ``i3d precompute``.
"""

import argparse
import sys

from i3d.cli import main
from i3d.parallel.world import world_from_environment

UNUSED = {
    "print_progress_num_shards": "a bar shows the progress all the time",
    "skip_video_check": "videos are not checked beforehand; one that cannot be read is recorded",
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--num_preprocess_workers", metavar="N", default="4")
    parser.add_argument("--no_compute_flow", action="store_true")
    parser.add_argument("--num_samples_per_shard", metavar="N", default="128")
    parser.add_argument("--print_progress_num_shards", metavar="N")
    parser.add_argument("--skip_video_check", action="store_true")
    args, further = parser.parse_known_args()

    for name, reason in UNUSED.items():
        if getattr(args, name) and world_from_environment().first:
            print(f"--{name} changes nothing: {reason}", file=sys.stderr)
    command = ["precompute", "--workers", args.num_preprocess_workers, "--max-seconds", "0"]
    command += ["--clips-per-shard", args.num_samples_per_shard]
    if args.no_compute_flow:
        command.append("--no-flow")
    main([*command, *further])
