"""What stands in for a GPU in tests: its kernels compiled for the CPU, and PyTorch's operations."""

import ctypes
import shutil
import subprocess
from pathlib import Path

from support import plain_tvl1

from i3d.flow import batch, gpu
from i3d.tasks.precompute import encode, writing

FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas"),
    "-ffp-contract=off",  # round as written
    "-U_FORTIFY_SOURCE",  # which forbids jumps to another stack
    "-Wl,-Bsymbolic",  # libc has functions called step and advance
)


def build(folder: Path, tiling: gpu.Tiling) -> gpu.Kernels | None:
    """The kernels behind the functions of a driver; None without a C++ compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    library = folder / f"{abs(hash(tiling)):x}.so"
    source = Path(__file__).with_name("gpu_on_cpu.cpp")
    options = [*FLAGS, *tiling.macros, f'-DKERNELS="{gpu.SOURCE}"', "-o", str(library)]
    subprocess.run([compiler, *options, str(source)], check=True)
    driver = ctypes.CDLL(str(library))
    kernels = gpu.Kernels(b"", driver, tiling)
    kernels.stand_in = driver
    return kernels


def flow_on_cpu(results, *, device):
    """`precompute.flow_videos` with PyTorch's operations on the CPU."""
    batch._kept_solver = plain_tvl1.open_solver
    return ORIGINAL(results, device="cpu")


def install() -> None:
    """Make `precompute` believe in a GPU; its processes import this module."""
    writing.choose_flow_device = lambda device, world: "cuda:0" if device == "cuda" else "cpu"
    encode.flow_videos = flow_on_cpu


ORIGINAL = encode.flow_videos
