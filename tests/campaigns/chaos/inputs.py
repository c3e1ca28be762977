"""Small inputs of every long command, made once a campaign, and the table of these commands."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from support import bundles, chainer_folders, training, videos

from i3d.models.released import DATA_FILE, INDEX_FILE

RELEASED = "rgb_scratch_kinetics400"
FRAMES = 10
WIDTH, HEIGHT = 64, 48


def make_inputs(folder: Path) -> None:
    """Videos, shards, zips, networks and a mirror of a released network, of about 8 MB."""
    for i in range(6):
        name = folder / "videos" / training.CLASSES[i % 2] / f"{i}.mp4"
        videos.write_video(name, videos.noise_images(FRAMES, WIDTH, HEIGHT, seed=i))
    (folder / "videos" / training.CLASSES[0] / "broken.mp4").write_bytes(b"not a video")
    training.write_shards(folder / "shards", [16] * 12, failed=("archery/03",))
    training.checkpoint(folder, "rgb")
    for number in range(2):
        samples = []
        for k in range(3):
            frames, flow = chainer_folders.moving_video(4, 32, 40, seed=3 * number + k)
            samples.append(chainer_folders.Sample(k, frames, flow))
        chainer_folders.write_shard(folder / "zips" / f"shard_0_{number}.zip", samples)
    for number, name in enumerate(("real", "fake")):
        rng = np.random.default_rng(number)
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (4, 10, 32, 32, 3), dtype=np.uint8))
    model = bundles.small_model(num_classes=None, classes="kinetics400")
    bundles.write(folder / "mirror" / "rgb_scratch", bundles.tensorflow_variables(model))


def released_record(inputs: Path) -> str:
    """What makes the mirror's network the released one, as JSON."""
    mirror = inputs / "mirror" / "rgb_scratch"
    data = (mirror / DATA_FILE).read_bytes()
    return json.dumps(
        {
            "index_sha256": hashlib.sha256((mirror / INDEX_FILE).read_bytes()).hexdigest(),
            "data_bytes": len(data),
            "data_sha256": hashlib.sha256(data).hexdigest(),
        }
    )


# What may be changed before the command line starts: a small network has a released one's name and
# comes in many pieces; an evaluation keeps what it has done after every video.
DOWNLOADING = """\
import dataclasses, json
from i3d.models import fetch, released
record = dataclasses.replace(released.CHECKPOINTS[{name!r}], **json.loads({record!r}))
released.CHECKPOINTS[{name!r}] = record
fetch.CHUNK_BYTES = 1 << 14
"""
KEEPING_EVERY_VIDEO = """\
from i3d.tasks.evaluate import logits
logits.PART_SECONDS = 0
"""
# Ctrl-C before the command line is there ends Python without a word, as for a command.
BEGIN = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
START = """\
from i3d.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


def without_times(data: bytes) -> bytes:
    """A report of an evaluation without what the run took."""
    document = json.loads(data)
    for name in ("seconds", "videos_per_second"):
        del document[name]
    return json.dumps(document).encode()


def without_measured(page: bytes) -> bytes:
    """A page of an evaluation without what the run took."""
    return re.sub(rb"<dt>(Duration|Time|Videos)</dt><dd>[^\n]*", b"", page)


@dataclass(frozen=True)
class Command:
    """A long command on the small inputs.

    Attributes:
        words: after ``i3d``; ``{inputs}`` is a folder or URL, ``{output}`` a folder.
        compared: name of a file -> what of its bytes is promised, where that is not all.
        ignored: patterns of files of which nothing is promised but that they may be there.
        prints_json: whether standard output holds one JSON document.
        has_workers: whether it starts worker processes.
        before: Python that runs before the command line; ``{name}`` and ``{record}`` are those of
            the released network that the inputs have.
    """

    words: str
    compared: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    prints_json: bool = True
    has_workers: bool = True
    before: str = ""


COMPUTING = "--device cpu --workers 1 --json"
FEATURES = "features {inputs}/videos {output}/%s --checkpoint {inputs}/rgb.safetensors"
FEATURES += " --window 16 --short loop " + COMPUTING
EVALUATE = "evaluate {inputs}/shards --rgb-checkpoint {inputs}/rgb.safetensors --frames 16"
EVALUATE += " --predictions {output}/logits.%s " + COMPUTING

COMMANDS = {
    "precompute": Command(
        "precompute {inputs}/videos {output}/shards --classes folders --short-side 32"
        " --clips-per-shard 2 --workers 2 --json"
    ),
    "convert-shards": Command(
        "convert-shards {inputs}/zips {output}/shards --clips-per-shard 2 --workers 2 --json"
    ),
    "evaluate": Command(
        EVALUATE % "parquet" + " --output {output}/report.json --report {output}/page.html",
        compared={"report.json": without_times, "page.html": without_measured},
        before=KEEPING_EVERY_VIDEO,
    ),
    "evaluate-csv": Command(EVALUATE % "csv", before=KEEPING_EVERY_VIDEO),
    "features": Command(FEATURES % "features"),
    "features-npy": Command(FEATURES % "features --format npy"),
    "features-parquet": Command(FEATURES % "features.parquet"),
    "features-hdf5": Command(FEATURES % "features.h5"),
    "fvd": Command(
        "fvd {inputs}/real.npy {inputs}/fake.npy --checkpoint {inputs}/rgb.safetensors --frames 10"
        " --save-statistics {output}/real.npz --output {output}/fvd.json " + COMPUTING
    ),
    "train": Command(
        "train {inputs}/shards --output {output}/run --stream rgb --val {inputs}/shards --frames 9"
        " --width 0.125 --batch-size 4 --epochs 2 --learning-rate 0.002 --log-steps 1 " + COMPUTING,
        ignored=("run/tensorboard/*",),
    ),
    "download": Command(
        f"checkpoints download {RELEASED} --url {{inputs}}/mirror",
        prints_json=False,
        has_workers=False,
        before=DOWNLOADING,
    ),
}
