"""Precompute RGB frames and TV-L1 flow of a folder of class folders, under the historical options.

python3 examples/i3d/precompute_frames_flow.py DIR OUT [--no_compute_flow]
    [--num_preprocess_workers N]

Further options are those of ``i3d precompute``, such as ``--classes kinetics400``.
"""

import argparse

from i3d.cli import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", help="folder of class folders with videos")
    parser.add_argument("out", help="folder of the shards")
    parser.add_argument("--no_compute_flow", action="store_true")
    parser.add_argument("--num_preprocess_workers", type=int)
    args, further = parser.parse_known_args()

    command = ["precompute", args.dir, args.out]
    if args.no_compute_flow:
        command.append("--no-flow")
    if args.num_preprocess_workers is not None:
        command += ["--workers", str(args.num_preprocess_workers)]
    main([*command, *further])
