"""A reader with every fault that the campaign is to see; ``--target faults``, for its own test."""

import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from campaigns.fuzz.cases import Target, check_finite
from campaigns.fuzz.mutations import Files

from i3d.errors import CheckpointError

SOUND = b"s" * 64


def samples() -> list[Files]:
    return [{"file": SOUND}]


def read(folder: Path) -> Any:
    """A fault by the file's first letter."""
    data = (folder / "file").read_bytes()
    match data[:1]:
        case b"s":
            return 1 if data == SOUND else 2
        case b"k":
            return {}["key"]
        case b"l":
            raise CheckpointError("file: damaged\nin\nthree lines")
        case b"m":
            return np.ones(1 << 31, np.uint8)
        case b"c":
            os.abort()
        case b"h":
            while True:
                pass
        case b"n":
            return float("nan")
    raise CheckpointError("file: damaged; fetch it again")


def choose_fault(random: Random, files: Files, others: Sequence[Files]) -> Files:
    return {"file": random.choice([b"k", b"l", b"m", b"c", b"h", b"n"])}


TARGET = Target(
    "faults", samples, read, check_finite, (choose_fault,), sealed=True, memory_mib=256, seconds=1.0
)
