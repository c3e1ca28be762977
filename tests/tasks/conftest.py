"""Fixtures: exported networks."""

from support.exports import exported, networks

__all__ = ["exported", "networks"]
