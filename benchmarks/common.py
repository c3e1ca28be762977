"""What a result was measured on and by, and where it goes."""

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def record(*packages: str) -> dict:
    """The command of this run, the machine, and the versions of those packages."""
    return {"command": command(), "machine": describe(), "versions": versions(*packages)}


def command() -> str:
    """As it was given, but paths without the folders they lie in."""
    arguments = [Path(a).name if Path(a).exists() else a for a in sys.argv[1:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def write(result: dict, stage: str, device: str = "cpu", output: Path | None = None) -> None:
    """To ``output``, or to results/STAGE.json, STAGE_cuda.json for a GPU's."""
    suffix = "" if device == "cpu" else f"_{device}"
    path = output or RESULTS / f"{stage}{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def describe() -> dict:
    """Processor, cores and GPU of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(*names: str) -> dict[str, str]:
    """Of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
