"""Evaluate an RGB network, a flow network or both under the options of the Chainer program.

    python3 examples/i3d/eval_kinetics.py DIR [--rgb_model_checkpoint C] [--flow_model_checkpoint C]
        [--batch_size 2] [--num_preprocess_workers 2] [--sample_video_frames 251] [--use_chainerio]

DIR holds shards, or the zips that the Chainer program precomputed; it may be a URL (hdfs://, s3://).
C is a name whose ./models/C.npz is there, a file, a URL or the name of a released network. Under
mpiexec the processes share the work, as before. Further options are those of ``i3d evaluate``, such
as ``--classes LIST`` and ``--output FILE``.
"""

import argparse
import sys
from pathlib import Path

from i3d.cli import main
from i3d.parallel.world import world_from_environment


def find_checkpoint(name: str) -> str:
    """The file that the program loaded for a name, if it is there; else the name."""
    path = Path("models", f"{name}.npz")
    return str(path) if path.is_file() else name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--rgb_model_checkpoint", metavar="C", type=find_checkpoint)
    parser.add_argument("--flow_model_checkpoint", metavar="C", type=find_checkpoint)
    parser.add_argument("--batch_size", metavar="N", default="2")
    parser.add_argument("--num_preprocess_workers", metavar="N", default="2")
    parser.add_argument("--sample_video_frames", metavar="N", default="251")
    parser.add_argument("--use_chainerio", action="store_true")
    args, further = parser.parse_known_args()

    if args.use_chainerio and world_from_environment().first:
        print("--use_chainerio changes nothing: paths and URLs are read alike", file=sys.stderr)
    command = ["evaluate", "--batch-size", args.batch_size, "--frames", args.sample_video_frames]
    command += ["--workers", args.num_preprocess_workers]
    if args.rgb_model_checkpoint is not None:
        command += ["--rgb-checkpoint", args.rgb_model_checkpoint]
    if args.flow_model_checkpoint is not None:
        command += ["--flow-checkpoint", args.flow_model_checkpoint]
    main([*command, *further])
