"""Where the cells of a memory lie: blocks of space in a directory, shared until they are changed.

A cell belongs to the voxel that its point falls into, in a grid whose edge follows the cell's own
size by powers of two; 16 x 16 x 16 voxels of one grid are a block. A `Store` is never changed once
it is published: a writer drafts a new one, which shares every block that it does not touch. So a
fork costs nothing, and a reader that holds a store sees all of a write or nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from jaxtyping import Bool, Float32, Int, Int32, Int64, Shaped, UInt8, UInt32
import numpy as np

IMAGINED = np.uint32(1 << 31)
LATEST = (1 << 31) - 1
VOXELS = 16
"""Voxels along the edge of a block."""

PAGE = 4096
"""Where nothing is merged, a block of space that holds as many cells goes on in a new block."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Remembered cells as the kernels read them, 29 bytes a cell and the latents.

    ``points`` are x, y, z in the world and the cell's size, metres; ``order`` is LATEST minus the
    cell's serial number, with the highest bit set where it was imagined, so that of two cells the
    smaller goes first; ``written`` are the depth in metres and the seconds since the memory's
    origin at which it was written; ``confidence`` is in 255ths; ``latents`` are float32, or the
    bits of bfloat16.
    """

    points: Float32[np.ndarray, '4 m']
    order: UInt32[np.ndarray, 'm']
    written: Float32[np.ndarray, '2 m']
    confidence: UInt8[np.ndarray, 'm']
    latents: Shaped[np.ndarray, 'm c']

    def __len__(self) -> int:
        return len(self.order)

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in vars(self).values())

    @property
    def observed(self) -> Bool[np.ndarray, 'm']:
        return self.order < IMAGINED

    def take(self, rows: Shaped[np.ndarray, '...']) -> Cells:
        return Cells(
            points=np.ascontiguousarray(self.points[:, rows]),
            order=self.order[rows],
            written=np.ascontiguousarray(self.written[:, rows]),
            confidence=self.confidence[rows],
            latents=self.latents[rows],
        )


def joined(parts: list[Cells]) -> Cells:
    return Cells(
        points=np.concatenate([part.points for part in parts], axis=1),
        order=np.concatenate([part.order for part in parts]),
        written=np.concatenate([part.written for part in parts], axis=1),
        confidence=np.concatenate([part.confidence for part in parts]),
        latents=np.concatenate([part.latents for part in parts]),
    )


def no_cells(channels: int, dtype: np.dtype) -> Cells:
    return Cells(
        points=np.zeros((4, 0), np.float32),
        order=np.zeros(0, np.uint32),
        written=np.zeros((2, 0), np.float32),
        confidence=np.zeros(0, np.uint8),
        latents=np.zeros((0, channels), dtype),
    )


def locate(
    points: Float32[np.ndarray, '4 m'], voxel: float
) -> tuple[Int64[np.ndarray, 'm 4'], Int32[np.ndarray, 'm']]:
    """The block of every point, as (grid level, i, j, k), and its voxel within the block.

    A grid's edge is ``voxel`` times the cell's size, rounded down to a power of two of metres
    before. Levels end at a quarter of a millimetre and at a thousand kilometres, and indices at
    2^40.
    """
    level = np.clip(np.frexp(points[3])[1] - 1, -12, 20)
    edge = np.ldexp(voxel, level)
    index = np.floor(points[:3].T / edge[:, None].astype(np.float64))
    index = np.clip(index, -(2.0**40), 2.0**40).astype(np.int64)
    block = np.concatenate([level[:, None].astype(np.int64), index // VOXELS], axis=1)
    local = index % VOXELS
    return block, ((local[:, 0] * VOXELS + local[:, 1]) * VOXELS + local[:, 2]).astype(np.int32)


class Store:
    """The directory of blocks. The verbs that change it are for a draft, never once published."""

    def __init__(self) -> None:
        self.blocks: list[Cells | None] = []
        self.slot_of: dict[tuple[int, ...], int] = {}
        self.key_of: list[tuple[int, ...] | None] = []
        self.free: list[int] = []
        self.length = 0
        self.lower = np.zeros((0, 3), np.float32)
        self.upper = np.zeros((0, 3), np.float32)
        self.count = np.zeros(0, np.int64)
        self.newest = np.zeros(0, np.float32)
        self.mapped = np.zeros(0, np.bool_)
        # points, order, written, latents
        self.address = np.zeros((4, 0), np.int64)

    def __len__(self) -> int:
        return self.length

    @property
    def index_nbytes(self) -> int:
        """Bytes of the directory: its arrays, and about 300 for the objects of a block."""
        arrays = (self.lower, self.upper, self.count, self.newest, self.mapped, self.address)
        return sum(values.nbytes for values in arrays) + 300 * len(self.blocks)

    def filled(self) -> list[int]:
        """The slots that hold cells."""
        return np.flatnonzero(self.count).tolist()

    def draft(self) -> Store:
        """A store with the same blocks, to be changed."""
        draft = Store()
        for name, value in vars(self).items():
            setattr(draft, name, value if isinstance(value, int) else value.copy())
        return draft

    def reserve(self, keys: Iterable[tuple[int, ...]]) -> list[int]:
        """The slots of blocks, given to them now where they have none."""
        slots = []
        for key in keys:
            slot = self.slot_of.get(key)
            if slot is None:
                slot = self.free.pop() if self.free else len(self.blocks)
                if slot == len(self.blocks):
                    self.blocks.append(None)
                    self.key_of.append(None)
                self.slot_of[key], self.key_of[slot] = slot, key
            slots.append(slot)
        room = len(self.count)
        if len(self.blocks) > room:
            more = max(len(self.blocks), room + room // 4) - room
            self.lower = np.pad(self.lower, ((0, more), (0, 0)))
            self.upper = np.pad(self.upper, ((0, more), (0, 0)))
            self.count = np.pad(self.count, (0, more))
            self.newest = np.pad(self.newest, (0, more))
            self.mapped = np.pad(self.mapped, (0, more))
            self.address = np.pad(self.address, ((0, 0), (0, more)))
        return slots

    def put(self, slot: int, cells: Cells, *, mapped: bool = False) -> None:
        """Let a block hold these cells, ``mapped`` from a file or not; none frees its slot."""
        self.length += len(cells) - int(self.count[slot])
        self.count[slot] = len(cells)
        self.mapped[slot] = mapped
        if len(cells) == 0:
            key = self.key_of[slot]
            assert key is not None
            del self.slot_of[key]
            self.blocks[slot] = self.key_of[slot] = None
            self.free.append(slot)
            return
        self.blocks[slot] = cells
        points = cells.points[:3]
        slack = 1e-5 * (1 + np.abs(points).max())  # more than float32 errs in projecting a point
        self.lower[slot] = points.min(axis=1) - slack
        self.upper[slot] = points.max(axis=1) + slack
        self.newest[slot] = cells.written[1].max()
        arrays = (cells.points, cells.order, cells.written, cells.latents)
        self.address[:, slot] = [values.ctypes.data for values in arrays]

    def cells(self) -> Cells | None:
        """All cells in the order in which they were written; None where there are none."""
        blocks = [self.blocks[slot] for slot in self.filled()]
        if not blocks:
            return None
        every = joined(blocks)
        return every.take(np.argsort(LATEST - (every.order & LATEST).astype(np.int64)))

    def renumber(self) -> int:
        """Number the cells from 0 on, in the same order; return how many there are."""
        slots = self.filled()
        if not slots:
            return 0
        order = np.concatenate([self.blocks[slot].order for slot in slots])
        serial = np.empty(len(order), np.int64)
        serial[np.argsort(LATEST - (order & LATEST).astype(np.int64))] = np.arange(len(order))
        order = (order & IMAGINED) | (LATEST - serial).astype(np.uint32)
        for slot, part in zip(slots, np.split(order, np.cumsum(self.count[slots])[:-1])):
            self.put(slot, replace(self.blocks[slot], order=part.copy()))
        return len(order)

    def insert(
        self,
        cells: Cells,
        camera: Int[np.ndarray, 'm'],
        *,
        voxel: float,
        displace: bool = True,
    ) -> int:
        """Add cells of one origin, ordered by camera, and return how many entered.

        With ``voxel`` > 0 a voxel holds the cells of one camera, the last that wrote into it, each
        whole. Imagined cells are refused where the voxel holds an observed one. Without
        ``displace`` the cells that were there stay beside the new ones. With ``voxel`` 0 every
        cell enters and stays.
        """
        if len(cells) == 0:
            return 0
        block, local = locate(cells.points, voxel or 1.0)
        rows = np.lexsort((*block.T[::-1],))  # stable: within a block the order of writing stays
        block, local, camera = block[rows], local[rows], camera[rows]
        starts = np.flatnonzero(np.any(np.diff(block, axis=0, prepend=block[:1] - 1), axis=1))
        keys = [tuple(key) for key in block[starts].tolist()]
        if not voxel:
            keys = [self._page(key) for key in keys]
        slots = self.reserve(keys)
        stops = [*starts[1:].tolist(), len(rows)]
        entered = 0
        for slot, start, stop in zip(slots, starts.tolist(), stops):
            new, old = rows[start:stop], self.blocks[slot]
            if voxel:
                place = (local[start:stop], camera[start:stop])
                new, rest = _merged(cells, new, *place, old, voxel=voxel)
                old = rest if displace else old
            if len(new) == 0:
                continue
            entered += len(new)
            parts = [part for part in (old, cells.take(new)) if part is not None]
            self.put(slot, joined(parts) if len(parts) > 1 else parts[0])
        return entered

    def _page(self, key: tuple[int, ...]) -> tuple[int, ...]:
        page = 0
        while (slot := self.slot_of.get((*key, page))) is not None and self.count[slot] >= PAGE:
            page += 1
        return (*key, page)


def _merged(
    cells: Cells,
    new: Int[np.ndarray, 'm'],
    local: Int32[np.ndarray, 'm'],
    camera: Int[np.ndarray, 'm'],
    old: Cells | None,
    *,
    voxel: float,
) -> tuple[Int[np.ndarray, 'k'], Cells | None]:
    """Which of the new cells enter a block, and what of the old ones stays."""
    last = np.full(VOXELS**3, -1, np.int64)
    if old is not None:
        held = locate(old.points, voxel)[1]
        if not cells.observed[new[0]]:
            last[held[old.observed]] = len(camera) + camera.max()  # later than any: never reached
    np.maximum.at(last, local, camera)
    enters = last[local] == camera
    if old is None:
        return new[enters], None
    hit = np.zeros(VOXELS**3, np.bool_)
    hit[local[enters]] = True
    stays = ~hit[held]
    return new[enters], old if stays.all() else old.take(stays)
