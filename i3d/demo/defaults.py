"""What the demo renders when nothing else is asked for."""

SEED = 2017  # the networks were trained on videos of other seeds
PER_CLASS = 4
