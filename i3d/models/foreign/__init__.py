"""Checkpoints of other programs -> ours."""
