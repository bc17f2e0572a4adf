"""Bounds on a memory: evicting blocks, and paging far blocks out to files.

Both work on a draft of a store, block by block. They free more than needed, so that one pass over
all blocks serves many writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import tempfile
from typing import Literal

from jaxtyping import Float, Float32, Int
import numpy as np

from mirage_model.memory.block_store import BlockSlot, BlockStore, BlockTable
from mirage_model.memory.points import LatentPoints

EvictionPolicy = Literal['oldest', 'furthest', 'imagined']


@dataclass(frozen=True, kw_only=True)
class MemoryLimits:
    """Bounds on the size of a latent memory."""

    capacity: int = 0
    """Largest number of points. 0 is unbounded."""

    policy: EvictionPolicy = 'oldest'
    """Blocks to evict first: written least recently, furthest from the camera, or imagined."""

    resident: int = 0
    """Largest number of points in RAM; far blocks go to files. 0 is unbounded."""

    folder: str = ''
    """Folder of the files of paged-out blocks. Needed if ``resident`` is set."""


def evict(
    store: BlockStore, capacity: int, policy: EvictionPolicy, centre: Float[np.ndarray, '3']
) -> None:
    """Evict points from a store that exceeds its capacity, until 1/32 of the capacity is free.

    Args:
        store: Draft to change.
        capacity: Largest number of points.
        policy: 'oldest' drops the blocks written least recently, 'furthest' those furthest from
            ``centre``, 'imagined' the imagined points of the oldest blocks, then as 'oldest'.
        centre: Position of the last camera in the world.
    """
    if len(store) <= capacity:
        return
    if policy == 'imagined':
        table, slots = store.occupied()
        with_imagined = np.flatnonzero(table.imagined)
        order = with_imagined[np.argsort(table.newest[with_imagined], kind='stable')]
        for slot in _first_slots(order, table.imagined, _excess(store, capacity), slots):
            block = store.block(slot)
            store.put(slot, block.take(block.observed))
        if len(store) <= capacity:
            return
    table, slots = store.occupied()
    rank = -_distance(table, centre) if policy == 'furthest' else table.newest
    order = np.argsort(rank, kind='stable')
    for slot in _first_slots(order, table.count, _excess(store, capacity), slots):
        store.put(slot, store.block(slot).take(np.zeros(0, np.int64)))


def page_out(
    store: BlockStore, resident: int, folder: Path, centre: Float[np.ndarray, '3']
) -> None:
    """Move blocks of a store with too many resident points into a file, the furthest first.

    The blocks stay in the store, mapped from the file. The system reads them back on access, and a
    write copies the blocks that it changes into memory. The file has no name, so that it
    disappears with the last block that uses it. Blocks of files of which less than half is in use
    move into the new file, so that files hold at most twice the points in use. A quarter of
    ``resident`` is freed, so that each file holds many blocks.

    Args:
        store: Draft to change.
        resident: Largest number of points in memory.
        folder: Folder of the file.
        centre: Position of the last camera in the world.
    """
    if store.resident <= resident:
        return
    table, slots = store.occupied()
    in_memory = np.flatnonzero(table.file == 0)
    far_first = in_memory[np.argsort(-_distance(table, centre)[in_memory], kind='stable')]
    excess = store.resident - resident * 3 // 4
    chosen = _first_slots(far_first, table.count, excess, slots)
    used = np.bincount(table.file, weights=table.count, minlength=len(store.file_points))
    sparse = np.flatnonzero((2 * used < store.file_points)[table.file])
    chosen += [(region, slot) for region, slot in slots[sparse].tolist()]
    blocks = [(slot, store.block(slot)) for slot in chosen]
    store.file_points = np.append(store.file_points, sum(len(block) for _, block in blocks))
    with tempfile.TemporaryFile(dir=folder) as file:
        for _, block in blocks:
            for values in vars(block).values():
                file.write(values.tobytes())
                file.write(bytes(-values.nbytes % 16))
        file.flush()
        mapped = np.asarray(np.memmap(file, dtype=np.uint8, mode='r'))
    start = 0
    for slot, block in blocks:
        fields = {}
        for name, values in vars(block).items():
            part = mapped[start : start + values.nbytes]
            fields[name] = part.view(values.dtype).reshape(values.shape)
            start += values.nbytes + -values.nbytes % 16
        store.put(slot, LatentPoints(**fields), file=len(store.file_points) - 1)


def _excess(store: BlockStore, capacity: int) -> int:
    return len(store) - (capacity - capacity // 32)


def _first_slots(
    order: Int[np.ndarray, 'k'],
    count: Int[np.ndarray, 'b'],
    enough: int,
    slots: Int[np.ndarray, 'b 2'],
) -> list[BlockSlot]:
    """Return the slots of the first rows in this order that have ``enough`` points together."""
    stop = np.searchsorted(np.cumsum(count[order]), enough) + 1
    return [(region, slot) for region, slot in slots[order[:stop]].tolist()]


def _distance(table: BlockTable, centre: Float[np.ndarray, '3']) -> Float32[np.ndarray, 'b']:
    """Return the distance of each block's bounding box from a position, metres."""
    outside = np.maximum(np.maximum(table.lower - centre, centre - table.upper), 0)
    return np.linalg.norm(outside, axis=1).astype(np.float32)
