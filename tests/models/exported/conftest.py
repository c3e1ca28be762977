"""Fixtures: exported networks."""

from support.exports import exported, networks, opened, pytorch

__all__ = ["exported", "networks", "opened", "pytorch"]
