"""Folders as the Chainer program wrote them, written with zipfile and OpenCV as it did."""

import zipfile
from pathlib import Path

import cv2
import numpy as np


def store_flow(flow):
    """Flow in pixels, (T, H, W, 2), as the program stored it: uint8."""
    return np.clip(np.round((flow + 20) * 255 / 40), 0, 255).astype(np.uint8)


def encode(picture):
    """A frame (H, W, 3), RGB, or one component of stored flow (H, W), as it wrote them."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, jpeg = cv2.imencode(".jpg", picture)
    assert done
    return jpeg.tobytes()


def decode(jpeg):
    """As its evaluation read them: RGB (H, W, 3), or gray (H, W)."""
    data = np.frombuffer(jpeg, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    return picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def moving_video(frames, height=256, width=340, seed=0):
    """Smooth noise that moves: frames uint8 (T, H, W, 3) and flow float32 (T - 1, H, W, 2)."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    still = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    video = np.stack([np.roll(still, t, axis=1) for t in range(frames)])
    flow = rng.uniform(-25, 25, (frames - 1, height // 16, width // 16, 2)).astype(np.float32)
    flow = np.stack([cv2.resize(f, (width, height)) for f in flow])
    flow[:, : height // 2] = 0  # no motion, which has a value of its own
    return video, flow


class Sample:
    """One sample: its pictures as JPEGs."""

    def __init__(self, label, frames, flow=None):
        self.label = label
        self.members = {"rgb": [encode(frame) for frame in frames]}
        if flow is not None:
            stored = store_flow(flow)
            self.members["flow_x"] = [encode(f[..., 0]) for f in stored]
            self.members["flow_y"] = [encode(f[..., 1]) for f in stored]

    def pixels(self, part):
        """What the program's evaluation saw before it cropped: uint8 (T, H, W[, 3])."""
        return np.stack([decode(jpeg) for jpeg in self.members[part]])


def write_shard(path, samples):
    """``shard_{rank}_{i}.zip``, member by member in the program's order."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for k, sample in enumerate(samples):
            file.writestr(f"sample_{k}/label", str(sample.label))
            for part, jpegs in sample.members.items():
                for t, jpeg in enumerate(jpegs):
                    file.writestr(f"sample_{k}/{part}/{t}.jpg", jpeg)


def write_classes(folder, samples):
    """The oldest layout: ``{rgb,flow_x,flow_y}/class_{label}/sample_{id}.zip``."""
    for number, sample in enumerate(samples):
        for part, jpegs in sample.members.items():
            path = Path(folder, part, f"class_{sample.label}", f"sample_{number}.zip")
            path.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(path, "w") as file:
                for t, jpeg in enumerate(jpegs):
                    file.writestr(f"{t}.jpg", jpeg)


def program_clip(sample, stream, frames=251, crop=224):
    """The network's input as the program's evaluation made it: float32 (C, frames, crop, crop)."""
    parts = ["rgb"] if stream == "rgb" else ["flow_x", "flow_y"]
    clips = []
    for part in parts:
        video = sample.pixels(part)
        video = video[[t % len(video) for t in range(frames)]]
        top, left = (round((side - crop) / 2.0) for side in video.shape[1:3])
        video = video[:, top : top + crop, left : left + crop]
        video = video if part == "rgb" else video[..., None]
        clips.append((video.astype(np.float32) - 128) / 128)
    return np.concatenate(clips, -1).transpose(3, 0, 1, 2)
