"""Networks, their checkpoints and the checkpoints of other programs."""
