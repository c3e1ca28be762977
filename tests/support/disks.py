"""Small disks, which fill up."""

import os
import subprocess
import tempfile
from pathlib import Path

PAGE = 4096  # of memory, which a tmpfs consists of


def lacks_mounts() -> str | None:
    """Why no small disk can be mounted here."""
    if os.geteuid() != 0:
        return "a small disk is a tmpfs, which only root mounts"
    with tempfile.TemporaryDirectory() as name:
        try:
            mount_small(Path(name), 1 << 20)
        except OSError as error:
            return f"no tmpfs can be mounted ({error})"
        unmount(Path(name))
    return None


def mount_small(folder: Path, size: int) -> None:
    """Mount a disk of so many bytes in memory, which are whole pages.

    Raises:
        OSError: it cannot be mounted.
    """
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())


def resize(folder: Path, size: int) -> None:
    """Give it another size, which what is on it must fit."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def unmount(folder: Path) -> None:
    """Give the memory back, even if something is at work there."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
