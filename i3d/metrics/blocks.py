"""Moments of features in blocks by their place, so that a sum's order depends on nothing else.

    rows of block 0, 1, 2, ...  --each block once, in any process and order--> a binary tree of sums

Floating-point sums depend on their order. Here a set's samples have places, a block is `BLOCK` of
them, and two neighbouring blocks are added, then two neighbouring pairs, and so on: the same sum to
the last bit for any batches and any number of processes. A process that has a stretch of blocks
keeps one sum for each whole subtree in it, some twenty at most.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np

from i3d.errors import I3DError
from i3d.metrics.frechet import FEW, Moments

BLOCK = 16  # places
_ROWS, _SUMS, _TAIL = "rows", "sums", "tail"


class BlockMoments:
    """Mean and covariance of features that come in blocks.

    As long as they are few the rows are kept, as `i3d.metrics.frechet.Moments` does.

    Args:
        dimensions: number D of features of a sample.
        keep: whether every row is kept.

    Attributes:
        count: number of samples so far.
    """

    def __init__(self, dimensions: int, *, keep: bool = False) -> None:
        self.dimensions, self.keep = dimensions, keep
        self.count = 0
        self._rows: dict[int, np.ndarray] | None = {}
        self._sums: dict[tuple[int, int], Moments] = {}  # by level and place in it
        self._tail = np.zeros((0, dimensions))  # of `append`: no whole block yet
        self._appended = 0  # blocks

    def add(self, block: int, rows: np.ndarray) -> None:
        """Take a block's samples, float (n, D): those of its places that there are.

        Raises:
            I3DError: another shape or type, NaN or infinity.
        """
        moments = _of_rows(rows, self.dimensions)
        self.count += len(rows)
        if self._rows is None:
            self._insert(0, block, moments)
            return
        self._rows[block] = np.asarray(rows, np.float64)
        self._compact()

    def append(self, rows: np.ndarray) -> None:
        """Take samples that follow those of the calls before, float (n, D), in any batches.

        Raises:
            I3DError: another shape or type, NaN or infinity.
        """
        _of_rows(rows, self.dimensions)  # refuses before anything is taken
        self.count -= len(self._tail)
        rows = np.concatenate([self._tail, np.asarray(rows, np.float64)])
        whole = len(rows) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            self.add(self._appended, rows[start : start + BLOCK])
            self._appended += 1
        self._tail = rows[whole:]
        self.count += len(self._tail)

    def merge(self, other: "BlockMoments") -> None:
        """Take the blocks that another process had; empties ``other``."""
        if other._rows is not None:
            for block, rows in other._rows.items():
                self.add(block, rows)
            return
        self._sum_rows()
        self.count += other.count
        for (level, place), moments in other._sums.items():
            self._insert(level, place, moments)

    def total(self) -> Moments:
        """Mean and covariance of all samples, with the rows in the order of the blocks."""
        if len(self._tail):  # a block like any other, for now
            arrays = {k: array for k, array in self.to_arrays().items() if k != _TAIL}
            ended = type(self).from_arrays(arrays, self.dimensions, keep=self.keep)
            ended.add(self._appended, self._tail)
            return ended.total()
        if self._rows is not None:
            whole = Moments(self.dimensions, keep=self.keep)
            for block in sorted(self._rows):
                whole.update(self._rows[block])
            return whole
        parts = [self._sums[key] for key in sorted(self._sums, key=lambda k: k[1] << k[0])]
        whole = Moments.from_sums(self.dimensions)
        for part in parts:
            whole.merge(part)
        return whole

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for another process."""
        arrays = {_TAIL: self._tail} if len(self._tail) else {}
        for block, rows in (self._rows or {}).items():
            arrays[f"{_ROWS}/{block}"] = rows
        for (level, place), moments in self._sums.items():
            for name, array in moments.to_arrays().items():
                arrays[f"{_SUMS}/{level}/{place}/{name}"] = array
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], dimensions: int, *, keep: bool = False
    ) -> Self:
        """What `to_arrays` gave."""
        made = cls(dimensions, keep=keep)
        sums: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            kind, *place = name.split("/")
            if kind == _TAIL:
                continue
            if kind == _ROWS:
                made.add(int(place[0]), array)
            else:
                sums.setdefault((int(place[0]), int(place[1])), {})[place[2]] = array
        for (level, index), parts in sums.items():
            moments = Moments.from_arrays(parts)
            made._sum_rows()
            made.count += moments.count
            made._insert(level, index, moments)
        made._appended = made.count // BLOCK  # were they appended: whole blocks
        if _TAIL in arrays:
            made.append(arrays[_TAIL])
        return made

    def _compact(self) -> None:
        """Add the rows up once they need more room than their sums.

        By whole blocks, so that it does not depend on batches either.
        """
        if not self.keep and self.count > max(self.dimensions, FEW):
            self._sum_rows()

    def _sum_rows(self) -> None:
        rows, self._rows = self._rows, None
        for block, part in (rows or {}).items():
            self._insert(0, block, _of_rows(part, self.dimensions))

    def _insert(self, level: int, place: int, moments: Moments) -> None:
        """Put a subtree's sum into the tree, and add up whatever is whole then."""
        if (level, place) in self._sums:
            raise I3DError(f"block {place} of level {level} was added twice")
        while (sibling := self._sums.pop((level, place ^ 1), None)) is not None:
            left, right = (sibling, moments) if place & 1 else (moments, sibling)
            left.merge(right)
            level, place, moments = level + 1, place >> 1, left
        self._sums[level, place] = moments


def _of_rows(rows: np.ndarray, dimensions: int) -> Moments:
    """Sums of some rows."""
    moments = Moments.from_sums(dimensions)
    moments.update(rows)
    return moments
