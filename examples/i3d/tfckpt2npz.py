"""Convert a released TensorFlow checkpoint to the ``.npz`` that the Chainer program loads.

    python3 examples/i3d/tfckpt2npz.py path/to/rgb_imagenet/model.ckpt OUT [CHANNELS CLASSES]

OUT may have any name. CHANNELS (3 of RGB, 2 of flow) and CLASSES, which the Chainer program had to
be told, are compared with what the checkpoint holds. Further options are those of ``i3d convert``.
"""

import sys

from i3d.cli import main
from i3d.errors import I3DError
from i3d.models.checkpoints import read_weights
from i3d.presets import STREAM_CHANNELS


def check(checkpoint: str, channels: int, classes: int) -> None:
    """End the program where a checkpoint is of another network."""
    try:
        config = read_weights(checkpoint).config
    except I3DError:
        return  # the conversion says what is wrong
    found = STREAM_CHANNELS[config.stream], config.num_classes
    if found != (channels, classes):
        print(
            f"{checkpoint} has {found[0]} channels and {found[1]} classes, not {channels} and "
            f"{classes}; leave the two numbers out",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    numbers = [a for a in arguments[2:4] if a.isdecimal()]
    if len(numbers) == 2:
        check(arguments[0], *map(int, numbers))
        del arguments[2:4]
    main(["convert", "--format", "npz", *arguments])
