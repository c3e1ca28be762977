"""What a paper needs beside the number: the protocols as a table, the sentence, and BibTeX."""

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from i3d.tasks.fvd.protocols import PROTOCOLS, Protocol, find_protocol
from i3d.tasks.fvd.result import Result

WIDTH = 100  # characters of a line

_FVD = """\
@article{unterthiner2018towards,
  title   = {Towards Accurate Generative Models of Video: A New Metric \\& Challenges},
  author  = {Unterthiner, Thomas and van Steenkiste, Sjoerd and Kurach, Karol and
             Marinier, Rapha{\\"e}l and Michalski, Marcin and Gelly, Sylvain},
  journal = {arXiv preprint arXiv:1812.01717},
  year    = {2018}
}"""
_I3D = """\
@inproceedings{carreira2017quo,
  title     = {Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset},
  author    = {Carreira, Jo{\\~a}o and Zisserman, Andrew},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2017}
}"""
_STYLEGAN_V = """\
@inproceedings{skorokhodov2022stylegan,
  title     = {StyleGAN-V: A Continuous Video Generator with the Price, Image Quality and Perks of
               StyleGAN2},
  author    = {Skorokhodov, Ivan and Tulyakov, Sergey and Elhoseiny, Mohamed},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022}
}"""
_VIDEOGPT = """\
@article{yan2021videogpt,
  title   = {VideoGPT: Video Generation using VQ-VAE and Transformers},
  author  = {Yan, Wilson and Zhang, Yunzhi and Abbeel, Pieter and Srinivas, Aravind},
  journal = {arXiv preprint arXiv:2104.10157},
  year    = {2021}
}"""
_COMMON_METRICS = """\
@misc{common_metrics_on_video_quality,
  title  = {common\\_metrics\\_on\\_video\\_quality},
  author = {JunyaoHu},
  note   = {github.com/JunyaoHu/common\\_metrics\\_on\\_video\\_quality}
}"""
_CD_FVD = """\
@inproceedings{ge2024content,
  title     = {On the Content Bias in Fr{\\'e}chet Video Distance},
  author    = {Ge, Songwei and Mahapatra, Aniruddha and Parmar, Gaurav and Zhu, Jun-Yan and
               Huang, Jia-Bin},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024}
}"""
_MCVD = """\
@inproceedings{voleti2022mcvd,
  title     = {MCVD: Masked Conditional Video Diffusion for Prediction, Generation, and
               Interpolation},
  author    = {Voleti, Vikram and Jolicoeur-Martineau, Alexia and Pal, Christopher},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}"""

_SOURCES = {  # the protocol's own, beside FVD's and the network's; by the beginning of its name
    "stylegan-v": _STYLEGAN_V,
    "videogpt": _VIDEOGPT,
    "common-metrics": _COMMON_METRICS,
    "cd-fvd": _CD_FVD,
    "prediction": _MCVD,
}

# Settings in the order of the table, with its heads
_COLUMNS = {
    "frames": "frames",
    "stride": "stride",
    "clips": "clips",
    "videos": "videos",
    "first resize": "first resize",
    "values": "8 bits",
    "network's": "network's resize",
    "bn_eps": "bn_eps",
    "divisor": "divisor",
}


class ProtocolTable:
    """All protocols and what they do: for a terminal, and for machines."""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"protocols": [asdict(protocol) for protocol in PROTOCOLS.values()]}

    def __str__(self) -> str:
        return describe_protocols()


@dataclass(frozen=True)
class Citation:
    """What a paper needs: of a protocol, or of a result and its protocol."""

    protocol: Protocol
    result: Result | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values: the result's, if there is one, and ``sentence`` and ``bibtex``."""
        found = {} if self.result is None else self.result.as_dict()
        sentence = None if self.result is None else describe_result(self.result)
        return {**found, "sentence": sentence, "bibtex": find_bibtex(self.protocol)}

    def __str__(self) -> str:
        entries = find_bibtex(self.protocol)
        if self.result is None:
            return entries
        sentence = textwrap.fill(describe_result(self.result), WIDTH, break_on_hyphens=False)
        return f"{self.result}\n\n{sentence}\n\n{entries}"


def describe_protocols() -> str:
    """All protocols with what they do, as a table, and where each was read."""
    rows = [("protocol", *_COLUMNS.values())]
    for protocol in PROTOCOLS.values():
        rows.append((protocol.name, *(_describe(protocol, column) for column in _COLUMNS)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines = [line.rstrip() for line in lines]
    lines.append("")
    lines += [f"{p.name}: {p.source}" for p in PROTOCOLS.values()]
    return "\n".join(lines)


def _describe(protocol: Protocol, column: str) -> str:
    if column == "first resize":
        size = "with --resolution" if protocol.resolution is None else str(protocol.resolution)
        return f"{protocol.filter}, {protocol.crop}, {size}"
    if column == "network's":
        return f"{protocol.resize}, {protocol.fit}"
    if column == "videos":
        return "all" if protocol.videos is None else str(protocol.videos)
    if column == "clips" and protocol.clips == "random":
        return f"random, seed {protocol.seed}"
    value = getattr(protocol, column)
    return f"{value:g}" if isinstance(value, float) else str(value)


def find_bibtex(protocol: Protocol) -> str:
    """BibTeX entries of FVD, of the network, and of the protocol's source."""
    entries = [_FVD, _I3D]
    entries += [entry for start, entry in _SOURCES.items() if protocol.name.startswith(start)]
    return "\n\n".join(entries)


def describe_result(result: Result) -> str:
    """The result in a sentence that says all that another needs to compare with it."""
    protocol, weights = result.protocol, result.weights
    if weights is None:
        return (
            f"The Fréchet distance is {result.value:.4g}, of {result.real.used} and "
            f"{result.fake.used} given features of {result.dimensions} dimensions (covariances "
            f"divided by {protocol.divisor}; i3d {result.as_dict()['versions']['i3d']})."
        )
    first = (
        "frames as they are"
        if protocol.resolution is None
        else f"frames resized to {protocol.resolution} x {protocol.resolution} first "
        f"({protocol.filter}, {protocol.crop}, values {protocol.values})"
    )
    which = {"first": "the first clip", "every": "every clip", "random": "a random clip"}
    clips = f"{which[protocol.clips]} of {protocol.frames} frames"
    if protocol.stride > 1:
        clips += f" at stride {protocol.stride}"
    if protocol.clips == "random":
        clips += f" (seed {protocol.seed})"
    if protocol.context:
        clips += f", the {protocol.context} given frames {protocol.context_frames}"
    changed = ", ".join(f"{k}={v}" for k, v in protocol.changes.items())
    named = find_protocol(protocol.name).source
    return (
        f"FVD is {result.value:.8g} between {result.real.count} real and {result.fake.count} "
        f"generated videos, by the protocol {protocol.name} ({named})"
        f"{f', changed in {changed}' if changed else ''}: {clips} of each video, {first}, "
        f"the {'logits' if protocol.endpoint == 'logits' else 'pooled features'} of "
        f"{weights.released or weights.words} (sha256 {weights.sha256[:12]}, epsilon "
        f"{protocol.bn_eps:g}), resized to {protocol.size} ({protocol.resize}, {protocol.fit}), "
        f"covariances divided by {protocol.divisor}; computed "
        f"with i3d {result.as_dict()['versions']['i3d']} at {result.precision}."
    )
