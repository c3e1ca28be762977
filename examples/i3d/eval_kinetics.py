"""Evaluate an RGB network, a flow network or both on shards, under the historical options.

python3 examples/i3d/eval_kinetics.py DIR [--rgb_model_checkpoint C] [--flow_model_checkpoint C]
    [--batch_size N] [--num_preprocess_workers N] [--use_chainerio]

DIR and C may be URLs (hdfs://, s3://) with or without --use_chainerio. Under mpiexec the processes
share the work, as before. Further options are those of ``i3d evaluate``, such as ``--output FILE``.
"""

import sys

from i3d.cli import main

RENAMED = {
    "--rgb_model_checkpoint": "--rgb-checkpoint",
    "--flow_model_checkpoint": "--flow-checkpoint",
    "--num_preprocess_workers": "--workers",
}


def renamed(argument: str) -> str:
    """An option by its name in ``i3d evaluate``; all else as it is."""
    name, equals, value = argument.partition("=")
    return RENAMED.get(name, name) + equals + value


if __name__ == "__main__":
    main(["evaluate", *(renamed(a) for a in sys.argv[1:] if a != "--use_chainerio")])
