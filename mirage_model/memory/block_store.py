"""The store of latent points: blocks of space in a directory, shared between stores until changed.

A point belongs to the voxel that contains it, in a grid whose edge follows the point's size by
powers of two. 16 x 16 x 16 voxels of a grid are a block, 8 x 8 x 8 blocks a region. A published
`BlockStore` never changes. A writer changes a draft, which shares all regions and blocks that it
does not touch. So a fork is free, a draft costs what it changes, and a reader sees a write whole
or not at all.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from itertools import zip_longest

from jaxtyping import Bool, Float32, Int, Int32, Int64, UInt32
import numpy as np

from mirage_model.memory.points import (
    BLOCK_VOXELS,
    IMAGINED_BIT,
    MAX_SERIAL,
    LatentPoints,
    block_and_voxel,
    concatenate,
    grid_level,
)

BlockKey = tuple[int, ...]
"""Level and i, j, k of a block or region. Without merging, a block's key ends with its page."""

BlockSlot = tuple[int, int]
"""Address of a block: the slot of its region, and its slot within the region."""

REGION_BLOCKS = 8
"""Blocks along the edge of a region."""

BLOCK_OVERHEAD = 960
"""Bytes of Python and NumPy objects for a block's arrays and key, whatever they hold."""

PAGE_POINTS = 4096
"""Points after which a block continues in another page, where nothing is merged."""


@dataclass(kw_only=True)
class BlockTable:
    """Bounds, counts and addresses of blocks, a row each."""

    lower: Float32[np.ndarray, 'b 3']
    """Lower corner of the bounding box in the world, with a margin for rounding."""

    upper: Float32[np.ndarray, 'b 3']
    """Upper corner of the bounding box in the world, with a margin for rounding."""

    count: Int64[np.ndarray, 'b']
    """Points in the block. 0 marks a free row."""

    imagined: Int64[np.ndarray, 'b']
    """Imagined points in the block."""

    newest: Float32[np.ndarray, 'b']
    """Latest time of writing, in seconds since the memory's origin."""

    file: Int32[np.ndarray, 'b']
    """Number of the file that the block is mapped from. 0 is memory."""

    address: Int64[np.ndarray, 'b 4']
    """Addresses of the arrays xyz_size, order, depth_time and latents."""

    def __len__(self) -> int:
        return len(self.count)

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in vars(self).values())

    def copy(self) -> BlockTable:
        return BlockTable(**{name: values.copy() for name, values in vars(self).items()})

    def take(self, rows: Int[np.ndarray, 'k']) -> BlockTable:
        return BlockTable(**{name: values[rows] for name, values in vars(self).items()})

    def padded(self, rows: int) -> BlockTable:
        """Return a copy with free rows appended, up to ``rows`` rows."""
        more = rows - len(self)
        return BlockTable(
            **{
                name: np.pad(values, ((0, more), *((0, 0),) * (values.ndim - 1)))
                for name, values in vars(self).items()
            }
        )


def _concatenate_tables(parts: list[BlockTable]) -> BlockTable:
    return BlockTable(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(BlockTable)
        }
    )


_EMPTY_TABLE = BlockTable(
    lower=np.zeros((0, 3), np.float32),
    upper=np.zeros((0, 3), np.float32),
    count=np.zeros(0, np.int64),
    imagined=np.zeros(0, np.int64),
    newest=np.zeros(0, np.float32),
    file=np.zeros(0, np.int32),
    address=np.zeros((0, 4), np.int64),
)


class _Slots:
    """Slots by key. A released slot is used again."""

    def __init__(self) -> None:
        self.slot_of: dict[BlockKey, int] = {}
        self._key_of: list[BlockKey | None] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._key_of)

    def copy(self) -> _Slots:
        result = _Slots()
        for name, values in vars(self).items():
            setattr(result, name, values.copy())
        return result

    def reserve(self, key: BlockKey) -> int:
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
    """Blocks of a cube of space by slot, with their table."""

    def __init__(self) -> None:
        self.slots = _Slots()
        self.blocks: list[LatentPoints | None] = []
        self.table = _EMPTY_TABLE

    def draft(self) -> _Region:
        draft = _Region()
        draft.slots, draft.table = self.slots.copy(), self.table.copy()
        draft.blocks = self.blocks.copy()
        return draft

    def reserve(self, key: BlockKey) -> int:
        slot = self.slots.reserve(key)
        if slot == len(self.blocks):
            self.blocks.append(None)
        if len(self.blocks) > len(self.table):
            self.table = self.table.padded(len(self.blocks) * 5 // 4 + 4)
        return slot

    def put(self, slot: int, points: LatentPoints, *, file: int) -> None:
        table = self.table
        table.count[slot], table.file[slot] = len(points), file
        if len(points) == 0:
            self.slots.release(slot)
            self.blocks[slot] = None
            return
        self.blocks[slot] = points
        xyz = points.xyz_size[:3]
        lower, upper = xyz.min(axis=1), xyz.max(axis=1)
        # larger than the error of float32 in projecting a point
        slack = 1e-5 * (1 + max(-lower.min(), upper.max()))
        table.lower[slot], table.upper[slot] = lower - slack, upper + slack
        table.imagined[slot] = np.count_nonzero(points.order >= IMAGINED_BIT)
        table.newest[slot] = points.depth_time[1].max()
        table.address[slot] = [
            values.__array_interface__['data'][0]
            for values in (points.xyz_size, points.order, points.depth_time, points.latents)
        ]


class BlockStore:
    """Directory of regions and blocks. Only a draft that is not yet published may be changed."""

    def __init__(self) -> None:
        self.next_serial = 0
        """Serial number of the next point."""
        self.length = 0
        """Points in all blocks."""
        self.resident = 0
        """Points in blocks that are not mapped from a file."""
        self.file_points = np.zeros(1, np.int64)
        """Points put into each file, in use or not. File numbers start at 1."""
        self._slots = _Slots()
        self._regions: list[_Region] = []
        self._drafted: set[int] = set()
        """Slots of the regions that this draft has copied."""
        self.lower = np.zeros((0, 3), np.float32)
        self.upper = np.zeros((0, 3), np.float32)
        """Bounding box of each region in the world, possibly too wide."""
        self.count = np.zeros(0, np.int64)
        """Points of each region."""

    def __len__(self) -> int:
        return self.length

    @property
    def index_nbytes(self) -> int:
        """Bytes of the directory: its arrays and the objects of blocks and regions."""
        arrays = (self.lower, self.upper, self.count, self.file_points)
        blocks = sum(len(region.slots.slot_of) for region in self._regions)
        tables = sum(region.table.nbytes for region in self._regions)
        objects = BLOCK_OVERHEAD * (blocks + len(self._regions))
        return tables + sum(values.nbytes for values in arrays) + objects

    def draft(self) -> BlockStore:
        """Return a changeable store that shares all regions with this one."""
        draft = copy.copy(self)
        draft._drafted = set()
        for name in ('_slots', '_regions', 'lower', 'upper', 'count'):
            setattr(draft, name, getattr(self, name).copy())
        return draft

    def table(self, regions: list[int]) -> tuple[BlockTable, Int64[np.ndarray, 'b 2']]:
        """Return the tables of some regions as one, and the `BlockSlot` of each row."""
        parts = [self._regions[region].table for region in regions]
        slots = [np.arange(len(part)) for part in parts]
        region = np.repeat(np.array(regions, np.int64), [len(part) for part in parts])
        slot = np.concatenate([*slots, np.zeros(0, np.int64)])
        return _concatenate_tables([*parts, _EMPTY_TABLE]), np.stack([region, slot], axis=1)

    def occupied(self) -> tuple[BlockTable, Int64[np.ndarray, 'b 2']]:
        """Return the table of all blocks that hold points, and the `BlockSlot` of each row."""
        table, slots = self.table(np.flatnonzero(self.count).tolist())
        rows = np.flatnonzero(table.count)
        return table.take(rows), slots[rows]

    def blocks(self) -> list[LatentPoints]:
        """Return all blocks that hold points."""
        return [self.block((region, slot)) for region, slot in self.occupied()[1].tolist()]

    def changes(self, since: BlockStore) -> tuple[list[LatentPoints], list[LatentPoints]]:
        """Return the blocks of an older store that this one lacks, and its new blocks."""
        old: dict[int, LatentPoints] = {}
        new: dict[int, LatentPoints] = {}
        for before, now in zip_longest(since._regions, self._regions):
            if before is not now:
                for region, blocks in ((before, old), (now, new)):
                    if region is not None:
                        blocks.update((id(block), block) for block in region.blocks if block)
        removed = [block for key, block in old.items() if key not in new]
        return removed, [block for key, block in new.items() if key not in old]

    def block(self, slot: BlockSlot) -> LatentPoints:
        block = self._regions[slot[0]].blocks[slot[1]]
        assert block is not None
        return block

    def put(self, slot: BlockSlot, points: LatentPoints, *, file: int = 0) -> None:
        """Replace the points of a block. An empty block frees its slot.

        Args:
            slot: Address of the block.
            points: All points of the block.
            file: Number of the file that ``points`` are mapped from, or 0 for memory.
        """
        in_region = slot[1]
        region = self._draft_region(slot[0])
        was = int(region.table.count[in_region])
        self.length += len(points) - was
        self.resident += len(points) * (not file) - was * (not region.table.file[in_region])
        region.put(in_region, points, file=file)
        self.count[slot[0]] += len(points) - was
        if len(points):
            lower, upper = self.lower[slot[0]], self.upper[slot[0]]
            np.minimum(lower, region.table.lower[in_region], out=lower)
            np.maximum(upper, region.table.upper[in_region], out=upper)
        elif self.count[slot[0]] == 0:
            self._slots.release(slot[0])
            self._regions[slot[0]] = _Region()

    def points(self) -> LatentPoints | None:
        """Return all points in the order of writing, or None if there are none."""
        blocks = self.blocks()
        if not blocks:
            return None
        points = concatenate(blocks)
        return points.take(np.argsort(_serial(points.order)))

    def renumber(self) -> None:
        """Number the points from 0 on, in the same order."""
        self.next_serial, blocks = len(self), self.blocks()
        if not blocks:
            return
        order = np.concatenate([block.order for block in blocks])
        serial = np.empty(len(order), np.int64)
        serial[np.argsort(_serial(order))] = np.arange(len(order))
        order = (order & IMAGINED_BIT) | (MAX_SERIAL - serial).astype(np.uint32)
        table, slots = self.occupied()
        parts = np.split(order, np.cumsum(table.count)[:-1])
        for (region, slot), block, part in zip(slots.tolist(), blocks, parts):
            self.put((region, slot), replace(block, order=part.copy()))

    def insert(
        self,
        points: LatentPoints,
        camera: Int[np.ndarray, 'm'],
        *,
        voxel: float,
        displace: bool = True,
    ) -> int:
        """Add the points of one write and return how many entered.

        A voxel keeps the points of the last camera that wrote into it.

        Args:
            points: Points that are all observed or all imagined, in the order of their cameras.
            camera: Index of each point's camera within the write.
            voxel: Edge of a voxel as a multiple of the points' size. 0 merges nothing.
            displace: Whether new points replace the points that were in their voxels before.
        """
        if len(points) == 0:
            return 0
        block, local = block_and_voxel(
            points.xyz_size, grid_level(points.xyz_size[3]), voxel or 1.0
        )
        rows, starts, stops = _group_rows(block)
        local, camera = local[rows], camera[rows]
        entered = 0
        for key, start, stop in zip(block[rows[starts]].tolist(), starts, stops):
            slot = self._reserve(tuple(key), paged=not voxel)
            new, old = rows[start:stop], self._regions[slot[0]].blocks[slot[1]]
            if voxel:
                enters = _of_last_camera(local[start:stop], camera[start:stop])
                new = new[enters]
                if old is not None and displace:
                    replaced = np.zeros(BLOCK_VOXELS**3, np.bool_)
                    replaced[local[start:stop][enters]] = True
                    stays = ~replaced[_voxels(old, voxel)]
                    old = old if stays.all() else old.take(stays)
            entered += len(new)
            parts = [part for part in (old, points.take(new)) if part is not None]
            self.put(slot, concatenate(parts) if len(parts) > 1 else parts[0])
        return entered

    def insert_unmerged(self, points: LatentPoints, *, voxel: float) -> None:
        """Add points to this empty store without merging any."""
        assert not len(self)
        if not len(points):
            return
        block, _ = block_and_voxel(points.xyz_size, grid_level(points.xyz_size[3]), voxel or 1.0)
        rows, starts, stops = _group_rows(block)
        for key, start, stop in zip(block[rows[starts]].tolist(), starts, stops):
            slot = self._reserve(tuple(key), paged=not voxel)
            self.put(slot, points.take(rows[start:stop]))

    def in_observed_voxel(
        self, xyz_size: Float32[np.ndarray, '4 m'], voxel: float
    ) -> Bool[np.ndarray, 'm']:
        """Return whether each point lies in a voxel, of any level, with an observed point."""
        inside = np.zeros(xyz_size.shape[1], np.bool_)
        for level in {key[0] for key in self._slots.slot_of}:
            block, local = block_and_voxel(xyz_size, np.full(len(inside), level), voxel)
            rows, starts, stops = _group_rows(block)
            for key, start, stop in zip(block[rows[starts]].tolist(), starts, stops):
                points = self._find(tuple(key))
                if points is None or not points.observed.any():
                    continue
                occupied = np.zeros(BLOCK_VOXELS**3, np.bool_)
                occupied[_voxels(points, voxel)[points.observed]] = True
                inside[rows[start:stop]] |= occupied[local[rows[start:stop]]]
        return inside

    def _find(self, key: BlockKey) -> LatentPoints | None:
        region = self._slots.slot_of.get(_region_key(key))
        if region is None:
            return None
        slot = self._regions[region].slots.slot_of.get(key)
        return None if slot is None else self._regions[region].blocks[slot]

    def _reserve(self, key: BlockKey, *, paged: bool) -> BlockSlot:
        """Return the slot of a block, or of its last page if ``paged``; allocate it if needed."""
        region = self._slots.reserve(_region_key(key))
        if region == len(self._regions):
            self._regions.append(_Region())
        if region >= len(self.count):
            more = len(self._regions) * 5 // 4 + 4 - len(self.count)
            self.lower = np.pad(self.lower, ((0, more), (0, 0)))
            self.upper = np.pad(self.upper, ((0, more), (0, 0)))
            self.count = np.pad(self.count, (0, more))
        draft = self._draft_region(region)
        if paged:
            page = 0
            while True:
                slot = draft.slots.slot_of.get((*key, page))
                if slot is None or draft.table.count[slot] < PAGE_POINTS:
                    break
                page += 1
            key = (*key, page)
        return region, draft.reserve(key)

    def _draft_region(self, region: int) -> _Region:
        """Return a region to change; copy it and tighten its box the first time."""
        if region not in self._drafted:
            self._drafted.add(region)
            self._regions[region] = self._regions[region].draft()
            table = self._regions[region].table
            filled = table.count > 0
            self.lower[region] = table.lower[filled].min(axis=0, initial=np.inf)
            self.upper[region] = table.upper[filled].max(axis=0, initial=-np.inf)
        return self._regions[region]


def _serial(order: UInt32[np.ndarray, 'm']) -> Int64[np.ndarray, 'm']:
    """Return the serial numbers in ``LatentPoints.order``."""
    return MAX_SERIAL - (order & MAX_SERIAL).astype(np.int64)


def _region_key(key: BlockKey) -> BlockKey:
    level, i, j, k = key[:4]
    return (level, i // REGION_BLOCKS, j // REGION_BLOCKS, k // REGION_BLOCKS)


def _group_rows(
    block: Int64[np.ndarray, 'm 4'],
) -> tuple[Int64[np.ndarray, 'm'], Int64[np.ndarray, 'b'], Int64[np.ndarray, 'b']]:
    """Return the rows sorted stably by block, and where each block starts and stops among them."""
    rows = np.lexsort((*block.T[::-1],))
    ordered = block[rows]
    new = np.ones(len(rows), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    return rows, starts, np.append(starts[1:], len(rows))


def _voxels(block: LatentPoints, voxel: float) -> Int32[np.ndarray, 'm']:
    """Return the index of each point's voxel in its block."""
    return block_and_voxel(block.xyz_size, grid_level(block.xyz_size[3]), voxel)[1]


def _of_last_camera(
    local: Int32[np.ndarray, 'm'], camera: Int[np.ndarray, 'm']
) -> Bool[np.ndarray, 'm']:
    """Return which points belong to the last camera that wrote into their voxel."""
    last = np.full(BLOCK_VOXELS**3, -1, np.int64)
    np.maximum.at(last, local, camera)
    return last[local] == camera
