"""Where the cells of a memory lie: blocks of space in a directory, shared until they are changed.

A cell belongs to the voxel that its point falls into, in a grid whose edge follows the cell's own
size by powers of two; 16 x 16 x 16 voxels of one grid are a block, 8 x 8 x 8 blocks a region. A
`Store` is never changed once it is published: a writer drafts a new one, which shares every region
that it does not touch, as a region shares the blocks. So a fork costs nothing, a draft what it
changes, and a reader that holds a store sees all of a write or nothing of it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import Literal

from jaxtyping import Bool, Float32, Int, Int32, Int64
import numpy as np

from mirage_model.memory.points import IMAGINED, LATEST, VOXELS, Cells, joined, level_of, locate

Key = tuple[int, ...]
"""A block's level and place, where nothing is merged with a page after them; or a region's."""

Place = tuple[int, int]
"""Where a block is found: the slot of its region, its own slot there."""

Prefer = Literal['newest', 'confident']

BLOCKS = 8
"""Blocks along the edge of a region."""

OBJECTS = 960
"""Bytes that Python and NumPy take for a block's arrays and key, whatever is in them."""

PAGE = 4096
"""Where nothing is merged, a block of space that holds as many cells goes on in a new block."""


@dataclass(kw_only=True)
class Table:
    """What must be known of blocks to find and read them, a row each; empty ones count 0.

    ``file`` is that which a block is mapped from, 0 for none; ``address`` are those of points,
    order, written and latents.
    """

    lower: Float32[np.ndarray, 'b 3']
    upper: Float32[np.ndarray, 'b 3']
    count: Int64[np.ndarray, 'b']
    imagined: Int64[np.ndarray, 'b']
    newest: Float32[np.ndarray, 'b']
    file: Int32[np.ndarray, 'b']
    address: Int64[np.ndarray, 'b 4']

    def __len__(self) -> int:
        return len(self.count)

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in vars(self).values())

    def copy(self) -> Table:
        return Table(**{name: values.copy() for name, values in vars(self).items()})

    def take(self, rows: Int[np.ndarray, 'k']) -> Table:
        return Table(**{name: values[rows] for name, values in vars(self).items()})

    def grown(self, rows: int) -> Table:
        more = rows - len(self)
        return Table(
            **{
                name: np.pad(values, ((0, more), *((0, 0),) * (values.ndim - 1)))
                for name, values in vars(self).items()
            }
        )


def _table(parts: list[Table]) -> Table:
    return Table(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Table)
        }
    )


_EMPTY = Table(
    lower=np.zeros((0, 3), np.float32),
    upper=np.zeros((0, 3), np.float32),
    count=np.zeros(0, np.int64),
    imagined=np.zeros(0, np.int64),
    newest=np.zeros(0, np.float32),
    file=np.zeros(0, np.int32),
    address=np.zeros((0, 4), np.int64),
)


class _Slots:
    """Slots by key; one that was given back is given out again."""

    def __init__(self) -> None:
        self.slot_of: dict[Key, int] = {}
        self._key_of: list[Key | None] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._key_of)

    def copy(self) -> _Slots:
        result = _Slots()
        for name, values in vars(self).items():
            setattr(result, name, values.copy())
        return result

    def reserve(self, key: Key) -> int:
        slot = self.slot_of.get(key)
        if slot is None:
            slot = self._free.pop() if self._free else len(self._key_of)
            if slot == len(self._key_of):
                self._key_of.append(None)
            self.slot_of[key], self._key_of[slot] = slot, key
        return slot

    def release(self, slot: int) -> None:
        key = self._key_of[slot]
        assert key is not None
        del self.slot_of[key]
        self._key_of[slot] = None
        self._free.append(slot)


class _Region:
    """The blocks of a cube of space, those of every slot and what the table says of them."""

    def __init__(self) -> None:
        self.slots = _Slots()
        self.blocks: list[Cells | None] = []
        self.table = _EMPTY

    def draft(self) -> _Region:
        draft = _Region()
        draft.slots, draft.table = self.slots.copy(), self.table.copy()
        draft.blocks = self.blocks.copy()
        return draft

    def reserve(self, key: Key) -> int:
        slot = self.slots.reserve(key)
        if slot == len(self.blocks):
            self.blocks.append(None)
        if len(self.blocks) > len(self.table):
            self.table = self.table.grown(len(self.blocks) * 5 // 4 + 4)
        return slot

    def put(self, slot: int, cells: Cells, *, file: int) -> None:
        table = self.table
        table.count[slot], table.file[slot] = len(cells), file
        if len(cells) == 0:
            self.slots.release(slot)
            self.blocks[slot] = None
            return
        self.blocks[slot] = cells
        points = cells.points[:3]
        lower, upper = points.min(axis=1), points.max(axis=1)
        # more than float32 errs in projecting a point
        slack = 1e-5 * (1 + max(-lower.min(), upper.max()))
        table.lower[slot], table.upper[slot] = lower - slack, upper + slack
        table.imagined[slot] = np.count_nonzero(cells.order >= IMAGINED)
        table.newest[slot] = cells.written[1].max()
        table.address[slot] = [
            values.__array_interface__['data'][0]
            for values in (cells.points, cells.order, cells.written, cells.latents)
        ]


class Store:
    """The directory of regions. The verbs that change it are for a draft, never once published."""

    def __init__(self) -> None:
        self.written = 0
        """The serial number of the cell that is written next."""
        self.length = 0
        self.resident = 0
        """Cells, and those of them that are not mapped from a file."""
        self.filed = np.zeros(1, np.int64)
        """Cells that were put into every file, in use still or not; files are counted from 1."""
        self._slots = _Slots()
        self._regions: list[_Region] = []
        self._own: set[int] = set()
        """Slots of the regions that this draft has made its own."""
        self.lower = np.zeros((0, 3), np.float32)
        self.upper = np.zeros((0, 3), np.float32)
        self.count = np.zeros(0, np.int64)
        """Of regions: a box around the cells, which may be too wide, and how many they are."""

    def __len__(self) -> int:
        return self.length

    @property
    def index_nbytes(self) -> int:
        """Bytes of the directory: its arrays, and what the objects of a block or a region take."""
        arrays = (self.lower, self.upper, self.count, self.filed)
        blocks = sum(len(region.slots.slot_of) for region in self._regions)
        tables = sum(region.table.nbytes for region in self._regions)
        objects = OBJECTS * (blocks + len(self._regions))
        return tables + sum(values.nbytes for values in arrays) + objects

    def draft(self) -> Store:
        """A store with the same regions, to be changed."""
        draft = copy.copy(self)
        draft._own = set()
        for name in ('_slots', '_regions', 'lower', 'upper', 'count'):
            setattr(draft, name, getattr(self, name).copy())
        return draft

    def table(self, regions: list[int]) -> tuple[Table, Int64[np.ndarray, 'b 2']]:
        """What is known of the blocks of some regions, and the places of the rows."""
        parts = [self._regions[region].table for region in regions]
        slots = [np.arange(len(part)) for part in parts]
        region = np.repeat(np.array(regions, np.int64), [len(part) for part in parts])
        slot = np.concatenate([*slots, np.zeros(0, np.int64)])
        return _table([*parts, _EMPTY]), np.stack([region, slot], axis=1)

    def filled(self) -> tuple[Table, Int64[np.ndarray, 'b 2']]:
        """What is known of every block that holds cells, and their places."""
        table, places = self.table(np.flatnonzero(self.count).tolist())
        rows = np.flatnonzero(table.count)
        return table.take(rows), places[rows]

    def blocks(self) -> list[Cells]:
        """Every block that holds cells."""
        return [self.block((region, slot)) for region, slot in self.filled()[1].tolist()]

    def changes(self, since: Store) -> tuple[list[Cells], list[Cells]]:
        """The blocks of an older store that this one has no more, and those that it has instead."""
        old, new = {}, {}
        for before, now in zip_longest(since._regions, self._regions):
            if before is not now:
                for region, blocks in ((before, old), (now, new)):
                    if region is not None:
                        blocks.update((id(cells), cells) for cells in region.blocks if cells)
        gone = [cells for key, cells in old.items() if key not in new]
        return gone, [cells for key, cells in new.items() if key not in old]

    def block(self, place: Place) -> Cells:
        region, slot = place
        cells = self._regions[region].blocks[slot]
        assert cells is not None
        return cells

    def put(self, place: Place, cells: Cells, *, file: int = 0) -> None:
        """Let a block hold these cells, mapped from a ``file`` or, with 0, not; none frees its slot."""
        slot = place[1]
        region = self._drafted(place[0])
        was = int(region.table.count[slot])
        self.length += len(cells) - was
        self.resident += len(cells) * (not file) - was * (not region.table.file[slot])
        region.put(slot, cells, file=file)
        self.count[place[0]] += len(cells) - was
        if len(cells):
            lower, upper = self.lower[place[0]], self.upper[place[0]]
            np.minimum(lower, region.table.lower[slot], out=lower)
            np.maximum(upper, region.table.upper[slot], out=upper)
        elif self.count[place[0]] == 0:
            self._slots.release(place[0])
            self._regions[place[0]] = _Region()

    def cells(self) -> Cells | None:
        """All cells in the order in which they were written; None where there are none."""
        blocks = self.blocks()
        if not blocks:
            return None
        every = joined(blocks)
        return every.take(np.argsort(LATEST - (every.order & LATEST).astype(np.int64)))

    def renumber(self) -> None:
        """Number the cells from 0 on, in the same order."""
        self.written, blocks = len(self), self.blocks()
        if not blocks:
            return
        order = np.concatenate([block.order for block in blocks])
        serial = np.empty(len(order), np.int64)
        serial[np.argsort(LATEST - (order & LATEST).astype(np.int64))] = np.arange(len(order))
        order = (order & IMAGINED) | (LATEST - serial).astype(np.uint32)
        table, places = self.filled()
        parts = np.split(order, np.cumsum(table.count)[:-1])
        for (region, slot), block, part in zip(places.tolist(), blocks, parts):
            self.put((region, slot), replace(block, order=part.copy()))

    def insert(
        self,
        cells: Cells,
        camera: Int[np.ndarray, 'm'],
        *,
        voxel: float,
        prefer: Prefer = 'newest',
        displace: bool = True,
    ) -> int:
        """Add cells of one origin, ordered by camera, and return how many entered.

        With ``voxel`` > 0 a voxel holds the cells of one camera, each whole: of the last that wrote
        into it, or of the one with the most confident cell there, of equals the last; what was
        observed goes before what was imagined. Without ``displace`` the cells that were there stay
        beside the new ones. With ``voxel`` 0 every cell enters and stays.
        """
        if len(cells) == 0:
            return 0
        block, local = locate(cells.points, level_of(cells.points[3]), voxel or 1.0)
        rows, starts, stops = _grouped(block)
        local, camera = local[rows], camera[rows]
        entered = 0
        for key, start, stop in zip(block[rows[starts]].tolist(), starts, stops):
            place = self._reserve(tuple(key), paged=not voxel)
            new, old = rows[start:stop], self._regions[place[0]].blocks[place[1]]
            if voxel:
                new, rest = _merged(
                    cells, new, local[start:stop], camera[start:stop], old,
                    voxel=voxel, prefer=prefer, displace=displace,
                )  # fmt: skip
                old = rest if displace else old
            if len(new) == 0:
                continue
            entered += len(new)
            parts = [part for part in (old, cells.take(new)) if part is not None]
            self.put(place, joined(parts) if len(parts) > 1 else parts[0])
        return entered

    def lay(self, cells: Cells, *, voxel: float) -> None:
        """Put the cells of another store where they belong in this empty one, and merge none."""
        assert not len(self)
        if not len(cells):
            return
        block, _ = locate(cells.points, level_of(cells.points[3]), voxel or 1.0)
        rows, starts, stops = _grouped(block)
        for key, start, stop in zip(block[rows[starts]].tolist(), starts, stops):
            place = self._reserve(tuple(key), paged=not voxel)
            self.put(place, cells.take(rows[start:stop]))

    def in_observed_voxel(
        self, points: Float32[np.ndarray, '4 m'], voxel: float
    ) -> Bool[np.ndarray, 'm']:
        """Which points lie in a voxel that holds an observed cell, in the grid of any level."""
        inside = np.zeros(points.shape[1], np.bool_)
        for level in {key[0] for key in self._slots.slot_of}:
            block, local = locate(points, np.full(len(inside), level), voxel)
            rows, starts, stops = _grouped(block)
            for key, start, stop in zip(block[rows[starts]].tolist(), starts, stops):
                held = self._find(tuple(key))
                if held is None or not held.observed.any():
                    continue
                taken = np.zeros(VOXELS**3, np.bool_)
                taken[_voxels(held, voxel)[held.observed]] = True
                inside[rows[start:stop]] |= taken[local[rows[start:stop]]]
        return inside

    def _find(self, key: Key) -> Cells | None:
        region = self._slots.slot_of.get(_region_of(key))
        if region is None:
            return None
        slot = self._regions[region].slots.slot_of.get(key)
        return None if slot is None else self._regions[region].blocks[slot]

    def _reserve(self, key: Key, *, paged: bool) -> Place:
        """The place of a block, given to it now if it has none; for its last page if ``paged``."""
        region = self._slots.reserve(_region_of(key))
        if region == len(self._regions):
            self._regions.append(_Region())
        if region >= len(self.count):
            more = len(self._regions) * 5 // 4 + 4 - len(self.count)
            self.lower = np.pad(self.lower, ((0, more), (0, 0)))
            self.upper = np.pad(self.upper, ((0, more), (0, 0)))
            self.count = np.pad(self.count, (0, more))
        mine = self._drafted(region)
        if paged:
            page = 0
            while True:
                slot = mine.slots.slot_of.get((*key, page))
                if slot is None or mine.table.count[slot] < PAGE:
                    break
                page += 1
            key = (*key, page)
        return region, mine.reserve(key)

    def _drafted(self, region: int) -> _Region:
        """The region in a slot, to be changed, with its box drawn close."""
        if region not in self._own:
            self._own.add(region)
            self._regions[region] = self._regions[region].draft()
            table = self._regions[region].table
            filled = table.count > 0
            self.lower[region] = table.lower[filled].min(axis=0, initial=np.inf)
            self.upper[region] = table.upper[filled].max(axis=0, initial=-np.inf)
        return self._regions[region]


def _region_of(key: Key) -> Key:
    return (key[0], key[1] // BLOCKS, key[2] // BLOCKS, key[3] // BLOCKS)


def _grouped(
    block: Int64[np.ndarray, 'm 4'],
) -> tuple[Int64[np.ndarray, 'm'], Int64[np.ndarray, 'b'], Int64[np.ndarray, 'b']]:
    """Rows by block, within one in the order that they had, and where each block's start and stop."""
    rows = np.lexsort((*block.T[::-1],))
    ordered = block[rows]
    new = np.ones(len(rows), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    return rows, starts, np.append(starts[1:], len(rows))


def _voxels(held: Cells, voxel: float) -> Int32[np.ndarray, 'm']:
    """The voxel of every cell of a block within it."""
    return locate(held.points, level_of(held.points[3]), voxel)[1]


def _merged(
    cells: Cells,
    new: Int[np.ndarray, 'm'],
    local: Int32[np.ndarray, 'm'],
    camera: Int[np.ndarray, 'm'],
    old: Cells | None,
    *,
    voxel: float,
    prefer: Prefer,
    displace: bool,
) -> tuple[Int[np.ndarray, 'k'], Cells | None]:
    """Which of the new cells enter a block, and what of the old ones stays."""
    cameras = int(camera.max()) + 2  # one more than there are, for what was there before
    rank = camera.astype(np.int64)
    best = np.full(VOXELS**3, -1, np.int64)
    held = None if old is None else _voxels(old, voxel)
    if prefer == 'confident':
        group = local.astype(np.int64) * cameras + camera
        _, group = np.unique(group, return_inverse=True)
        grade = np.zeros(len(new), np.int64)
        np.maximum.at(grade, group, cells.confidence[new])
        rank += grade[group] * cameras
        if old is not None and displace:
            equal = old.observed if cells.observed[new[0]] else np.ones(len(old), np.bool_)
            was = old.confidence[equal].astype(np.int64) * cameras - 1
            np.maximum.at(best, held[equal], was)
    np.maximum.at(best, local, rank)
    enters = best[local] == rank
    if old is None:
        return new[enters], None
    hit = np.zeros(VOXELS**3, np.bool_)
    hit[local[enters]] = True
    stays = ~hit[held]
    return new[enters], old if stays.all() else old.take(stays)
