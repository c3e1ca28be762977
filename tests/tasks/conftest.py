"""Fixtures: exported networks, and tests that leave PyTorch's threads as they were."""

import pytest
import torch
from support.exports import exported, networks

__all__ = ["exported", "networks"]


@pytest.fixture(autouse=True)
def threads_stay():
    """A job of several processes takes its share of them, which changes other jobs' digits."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
