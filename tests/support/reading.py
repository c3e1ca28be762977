"""What the small videos of `tests/data/reading` are, and how they are read."""

from i3d.presets import find_preset

PRESET = find_preset("kinetics-i3d-48")
FRAMES = {"a/long": 40, "a/short": 7, "b/single": 1, "b/tall": 30}
