"""The work of one process: its videos' clips through the network, block by block.

    blocks of 16 videos --in the cache?--> rows
      else: workers read pieces --clips--> network --> rows --> cache
    rows --> sums whose order does not depend on processes or batches

A video that cannot be used is skipped with its reason. A new batch begins with every block, so that
what is computed together does not depend on what was in the cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from i3d.console import Bar, progress_bar
from i3d.metrics.blocks import BLOCK, BlockMoments
from i3d.parallel.ahead import check_shared_memory, read_items
from i3d.parallel.process import choose_workers
from i3d.parallel.world import World
from i3d.tasks.fvd.clip_sets import (
    PIECE_FRAMES,
    ClipSet,
    Look,
    Piece,
    count_frames,
    divide_clips,
    read_piece,
)
from i3d.tasks.fvd.embedder import Embedder
from i3d.tasks.fvd.feature_cache import BlockRows, FeatureCache
from i3d.tasks.fvd.packing import pack_arrays, unpack_arrays
from i3d.tasks.options import ComputeOptions

BYTES_A_PIXEL = 12  # of a clip: three float32


class _Owner(NamedTuple):
    """Whose row it is: which clip of which video."""

    block: "_Block"
    video: int
    clip: int


@dataclass(eq=False)
class _Block:
    """A block while its clips are read and computed.

    Attributes:
        number: place of the block in its set.
        videos: key and identity of each video; None where one has none, and nothing is kept.
        rows: clips that were computed, by video and place in it.
        running: clips that were read and not computed yet.
        is_read: whether nothing more will be read.
    """

    number: int
    videos: list[tuple[str, str]] | None
    rows: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    running: int = 0
    is_read: bool = False

    def finish(self, shape: tuple[int, int]) -> BlockRows:
        """All of it in the order of the videos; those that were skipped have no rows."""
        places = sorted(place for place in self.rows if place[0] not in self.skipped)
        rows = [self.rows[place] for place in places]
        return BlockRows(
            np.array([video for video, _ in places], np.int64),
            np.stack(rows) if rows else np.zeros((0, *shape), np.float32),
            sorted(self.skipped.items()),
            sorted((i, text) for i, text in self.damaged.items() if i not in self.skipped),
            sorted(self.sizes),
        )


@dataclass
class SetRows:
    """What is known of a set, or of a process's share of it.

    Attributes:
        moments: the features' at each length.
        videos: block -> number of the video of each row; empty where rows are not kept.
        used: number of videos with rows.
        skipped: (number of the video, reason).
        damaged: (number of the video, what was lost) of used ones.
        sizes: height and width of frames, each pair once.
        resumed: number of videos whose rows were in the cache.
    """

    moments: list[BlockMoments]
    videos: dict[int, np.ndarray] = field(default_factory=dict)
    used: int = 0
    skipped: list[tuple[int, str]] = field(default_factory=list)
    damaged: list[tuple[int, str]] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    resumed: int = 0

    def add(self, block: int, rows: BlockRows, *, keep: bool) -> None:
        """Take a block's rows."""
        for k, moments in enumerate(self.moments):
            moments.add(block, rows.rows[:, k])
        if keep:
            self.videos[block] = rows.videos
        self.used += len(np.unique(rows.videos))
        self.skipped += rows.skipped
        self.damaged += rows.damaged
        self.sizes |= set(rows.sizes)

    def merge(self, other: "SetRows") -> None:
        """Take another process's share; empties ``other``."""
        for mine, theirs in zip(self.moments, other.moments, strict=True):
            mine.merge(theirs)
        self.videos |= other.videos
        self.used += other.used
        self.skipped += other.skipped
        self.damaged += other.damaged
        self.sizes |= other.sizes
        self.resumed += other.resumed


class SetMeasurer:
    """This process's share of every set.

    Args:
        embedder: what makes the features.
        clips: name -> set.
        cache: where features are kept; None: nowhere.
        world: this process's part of the work.
        keep: whether every row is kept.
    """

    def __init__(
        self,
        embedder: Embedder,
        clips: Mapping[str, ClipSet],
        *,
        cache: FeatureCache | None,
        world: World,
        keep: bool,
    ) -> None:
        self.embedder, self.clips, self.cache, self.world = embedder, clips, cache, world
        self.keep = keep
        self._shape = len(embedder.lengths), embedder.dimensions
        self.sets = {name: make_rows(*self._shape, keep=keep) for name in clips}
        self._done = 0  # videos, for the bar

    def run(self, options: ComputeOptions, device: str, *, progress: bool) -> None:
        """Look at them."""
        protocol = self.embedder.protocol
        workers = choose_workers(options.workers, device, self.world, decodes=False)
        frames = protocol.frames
        if protocol.clips == "every":
            frames *= max(1, PIECE_FRAMES // frames)
        check_shared_memory(
            frames * protocol.size**2 * BYTES_A_PIXEL,
            workers=workers,
            processes=self.world.local_size,
        )
        total = sum(len(self._videos(name)) for name in self.clips)
        title = self.world.title("fvd") if progress else None
        with progress_bar(title, total=total, unit="videos") as bar:
            for name in self.clips:
                self._measure(name, workers, bar, pin=device != "cpu")

    def part(self) -> bytes:
        """All that this process has to report."""
        return pack_sets(self.sets)

    def _blocks(self, name: str) -> range:
        """Which blocks of a set are this process's."""
        return self.world.share(-(-self.clips[name].planned // BLOCK))

    def _videos(self, name: str) -> range:
        blocks = self._blocks(name)
        return range(blocks.start * BLOCK, min(blocks.stop * BLOCK, self.clips[name].planned))

    def _measure(self, name: str, workers: int, bar: Bar, *, pin: bool) -> None:
        """Every block of a set: from the cache, or from the network."""
        clips, videos = self.clips[name], self._videos(name)
        identities = clips.footage.identify(videos) if self.cache else [None] * len(videos)
        missing: list[_Block] = []
        for number in self._blocks(name):
            part = range(number * BLOCK, min((number + 1) * BLOCK, videos.stop))
            known = [(clips.keys[i], identities[i - videos.start]) for i in part]
            named = [(key, identity) for key, identity in known if identity is not None]
            block = _Block(number, named if len(named) == len(known) else None)
            found = None
            if self.cache is not None and block.videos is not None:
                found = self.cache.find(block.videos, part.start)
            if found is None:
                missing.append(block)
                continue
            self.sets[name].add(number, found, keep=self.keep)
            self.sets[name].resumed += len(part)
            self._advance(len(part), bar)
        read = self._read(name, missing, workers, bar, pin=pin)
        for owners, rows, reasons in self.embedder.embed(read):
            for owner, row, reason in zip(owners, rows, reasons, strict=True):
                owner.block.running -= 1
                if reason is None:
                    owner.block.rows[owner.video, owner.clip] = row
                else:
                    owner.block.skipped.setdefault(owner.video, reason)
                self._finish(name, owner.block)

    def _read(
        self, name: str, blocks: Sequence[_Block], workers: int, bar: Bar, *, pin: bool
    ) -> Iterator[tuple[_Owner, torch.Tensor] | None]:
        """The clips of blocks; what cannot be used is noted."""
        clips = self.clips[name]
        plan = [(block, self._plan(name, block, workers)) for block in blocks]
        pieces = [piece for _, part in plan for piece in part]
        read = partial(read_piece, clips=clips, pieces=pieces)
        names = [clips.keys[piece.video] for piece in pieces]
        items = read_items(read, range(len(pieces)), workers=workers, pin=pin, names=names)
        for block, part in plan:
            for i, piece in enumerate(part):
                item = next(items)
                if item.error is not None:
                    block.skipped.setdefault(piece.video, item.error)
                else:
                    look: Look = item.about
                    block.sizes.add(look.size)
                    if look.damage is not None:
                        block.damaged[piece.video] = look.damage
                    first = 0 if piece.clips is None else piece.clips.start
                    for place, clip in enumerate(item.tensors["clips"], first):
                        block.running += 1
                        yield _Owner(block, piece.video, place), clip
                if i + 1 == len(part) or part[i + 1].video != piece.video:
                    self._advance(1, bar)
            block.is_read = True
            self._finish(name, block)
            yield None

    def _plan(self, name: str, block: _Block, workers: int) -> list[Piece]:
        """The pieces of a block's videos; where every clip is taken, they are counted first."""
        clips = self.clips[name]
        videos = range(block.number * BLOCK, min((block.number + 1) * BLOCK, clips.planned))
        if clips.protocol.clips != "every":
            return [Piece(i) for i in videos]
        pieces: list[Piece] = []
        count = partial(count_frames, clips=clips)
        for item in read_items(count, videos, workers=workers, names=clips.keys):
            if item.error is None:
                pieces += divide_clips(item.index, item.about, clips.protocol)
            else:
                block.skipped[item.index] = item.error
        return pieces

    def _finish(self, name: str, block: _Block) -> None:
        """Hand a block over once all of it was read and computed."""
        if not block.is_read or block.running:
            return
        rows = block.finish(self._shape)
        self.sets[name].add(block.number, rows, keep=self.keep)
        block.rows.clear()
        if self.cache is not None and block.videos is not None:
            self.cache.keep(block.videos, block.number * BLOCK, rows)

    def _advance(self, count: int, bar: Bar) -> None:
        self._done += count
        bar.update(self._done)


def make_rows(lengths: int, dimensions: int, *, keep: bool) -> SetRows:
    """No rows yet."""
    return SetRows([BlockMoments(dimensions, keep=keep) for _ in range(lengths)])


# --- between processes ----------------------------------------------------------------------------


def pack_sets(sets: Mapping[str, SetRows]) -> bytes:
    """A process's share of every set, for another one; no pickle."""
    about: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, part in sets.items():
        about[name] = {
            "dimensions": part.moments[0].dimensions,
            "used": part.used,
            "skipped": part.skipped,
            "damaged": part.damaged,
            "sizes": sorted(part.sizes),
            "resumed": part.resumed,
        }
        for block, videos in part.videos.items():
            arrays[f"{name}|videos|{block}"] = videos
        for k, moments in enumerate(part.moments):
            for key, array in moments.to_arrays().items():
                arrays[f"{name}|{k}|{key}"] = array
    about["lengths"] = max((len(part.moments) for part in sets.values()), default=0)
    return pack_arrays(about, arrays)


def unpack_sets(data: bytes, *, keep: bool) -> dict[str, SetRows]:
    """What `pack_sets` gave."""
    about, arrays = unpack_arrays(data)
    lengths = about.pop("lengths")
    sets = {}
    for name, what in about.items():
        videos: dict[int, np.ndarray] = {}
        parts: list[dict[str, np.ndarray]] = [{} for _ in range(lengths)]
        for key, array in arrays.items():
            owner, k, rest = key.split("|")
            if owner != name:
                continue
            if k == "videos":
                videos[int(rest)] = array
            else:
                parts[int(k)][rest] = array
        dimensions = what["dimensions"]
        sets[name] = SetRows(
            [BlockMoments.from_arrays(part, dimensions, keep=keep) for part in parts],
            videos,
            what["used"],
            [(int(i), text) for i, text in what["skipped"]],
            [(int(i), text) for i, text in what["damaged"]],
            {(int(h), int(w)) for h, w in what["sizes"]},
            what["resumed"],
        )
    return sets
