"""The folder that ``i3d demo`` fills: what is where in it, and whose it is."""

import json
from dataclasses import dataclass
from pathlib import Path

from i3d import files
from i3d.demo.actions import ACTIONS
from i3d.errors import CheckpointError, UsageError
from i3d.presets import STREAMS, Stream


@dataclass(frozen=True)
class Folder:
    """Paths below ``root``."""

    root: Path

    @property
    def settings(self) -> Path:
        """What the videos depend on; where this file is, the folder is a demo's."""
        return self.root / "demo.json"

    @property
    def classes(self) -> Path:
        """The names of the actions, in the order of the logits."""
        return self.root / "classes.txt"

    @property
    def videos(self) -> Path:
        """A folder of videos for each action."""
        return self.root / "videos"

    @property
    def sequence(self) -> Path:
        """A longer video of several actions."""
        return self.root / "sequence.mp4"

    @property
    def shards(self) -> Path:
        """Frames and flow of the videos."""
        return self.root / "shards"

    @property
    def report(self) -> Path:
        """The evaluation for machines."""
        return self.root / "evaluation.json"

    @property
    def evaluation_page(self) -> Path:
        """The evaluation for people."""
        return self.root / "evaluation.html"

    @property
    def page(self) -> Path:
        """The page of the whole demo."""
        return self.root / "index.html"

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them that are no folders."""
        single = (self.settings, self.classes, self.sequence, self.report)
        return (*single, self.evaluation_page, self.page, *map(self.checkpoint, STREAMS))

    def checkpoint(self, stream: Stream) -> Path:
        """A network."""
        return self.root / f"{stream}.safetensors"

    def sample(self, action: str) -> Path:
        """The first video of an action."""
        return self.videos / action / f"{action.replace(' ', '-')}-0000.mp4"

    def key(self, video: Path) -> str:
        """The name of a video in the shards."""
        return video.relative_to(self.videos).with_suffix("").as_posix()


def open_folder(root: Path, *, seed: int, per_class: int, checkpoints: Path) -> Folder:
    """Make the folder, or take up an earlier run's, and put the networks into it.

    The networks are copied so that the commands can name them by a short path.

    Args:
        root: path of the folder.
        seed: number that the videos depend on.
        per_class: videos of each action.
        checkpoints: folder that holds ``rgb.safetensors`` and ``flow.safetensors``.

    Raises:
        CheckpointError: a network is missing.
        UsageError: the folder holds something else, or a demo of other videos.
    """
    networks = {stream: checkpoints / f"{stream}.safetensors" for stream in STREAMS}
    for path in networks.values():
        if not path.is_file():
            raise CheckpointError(
                f"{path}: the demo's trained network is missing; install i3d again, with its "
                ".safetensors files"
            )
    folder = Folder(root)
    settings = json.dumps({"seed": seed, "per_class": per_class}, allow_nan=False) + "\n"
    if folder.settings.exists():
        there = folder.settings.read_text()
        if there != settings:
            raise UsageError(
                f"{root} holds the demo of {there.strip()}, not {settings.strip()}; use the same "
                "--seed and --per-class, or name another folder"
            )
    elif root.exists():
        others = [p.name for p in root.iterdir() if files.final_name(p.name) is None]
        if others:
            raise UsageError(
                f"{root} holds something else ({min(others)}, and no {folder.settings.name}); name "
                "a folder that is new or empty"
            )
    files.write(folder.settings, settings.encode())
    files.write(folder.classes, "".join(f"{action}\n" for action in ACTIONS).encode())
    for stream, path in networks.items():
        files.write(folder.checkpoint(stream), path.read_bytes())
    return folder
