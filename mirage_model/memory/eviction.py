"""Keeping a memory within bounds: forgetting blocks, and putting far ones on disk.

Both work on a draft of a store, block by block, and go further than asked for, so that a look over
all blocks pays for many writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import tempfile
from typing import Literal

from jaxtyping import Float, Float32, Int
import numpy as np

from mirage_model.memory.block_store import Place, Store, Table
from mirage_model.memory.points import Cells

Policy = Literal['oldest', 'furthest', 'imagined']


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a memory may hold; `MemoryConfig` says what the fields mean."""

    capacity: int = 0
    policy: Policy = 'oldest'
    resident: int = 0
    folder: str = ''


def forget(store: Store, capacity: int, policy: Policy, centre: Float[np.ndarray, '3']) -> None:
    """Where more than ``capacity`` cells are held, drop some until 1/32 of the room is free.

    'oldest' drops the blocks that were written to least recently, 'furthest' those furthest from
    ``centre``, 'imagined' first the imagined cells of the oldest blocks, then as 'oldest'.
    """
    if len(store) <= capacity:
        return
    if policy == 'imagined':
        table, places = store.filled()
        some = np.flatnonzero(table.imagined)
        order = some[np.argsort(table.newest[some], kind='stable')]
        for place in _until(order, table.imagined, _too_many(store, capacity), places):
            block = store.block(place)
            store.put(place, block.take(block.observed))
        if len(store) <= capacity:
            return
    table, places = store.filled()
    rank = -_distance(table, centre) if policy == 'furthest' else table.newest
    order = np.argsort(rank, kind='stable')
    for place in _until(order, table.count, _too_many(store, capacity), places):
        store.put(place, store.block(place).take(np.zeros(0, np.int64)))


def page_out(store: Store, resident: int, folder: Path, centre: Float[np.ndarray, '3']) -> None:
    """Where more than ``resident`` cells are in memory, move blocks into a file, the furthest first.

    They stay in the store, mapped from the file: whoever reads them has the system bring them
    back, and a write makes a copy in memory of the block that it changes. The file has no name any
    more, so that it is gone with the last block that uses it, or with the process; a file of which
    less than half is in use is moved into the new one, so that files hold no more than twice the
    cells that lie in them. A quarter of ``resident`` is made free, so that a file holds many blocks.
    """
    if store.resident <= resident:
        return
    table, places = store.filled()
    here = np.flatnonzero(table.file == 0)
    far_first = here[np.argsort(-_distance(table, centre)[here], kind='stable')]
    too_many = store.resident - resident * 3 // 4
    chosen = _until(far_first, table.count, too_many, places)
    used = np.bincount(table.file, weights=table.count, minlength=len(store.filed))
    sparse = np.flatnonzero((2 * used < store.filed)[table.file])
    chosen += [(region, slot) for region, slot in places[sparse].tolist()]
    moved = [(place, store.block(place)) for place in chosen]
    store.filed = np.append(store.filed, sum(len(block) for _, block in moved))
    with tempfile.TemporaryFile(dir=folder) as file:
        for _, block in moved:
            for values in vars(block).values():
                file.write(values.tobytes())
                file.write(bytes(-values.nbytes % 16))
        file.flush()
        mapped = np.asarray(np.memmap(file, dtype=np.uint8, mode='r'))
    start = 0
    for place, block in moved:
        fields = {}
        for name, values in vars(block).items():
            part = mapped[start : start + values.nbytes]
            fields[name] = part.view(values.dtype).reshape(values.shape)
            start += values.nbytes + -values.nbytes % 16
        store.put(place, Cells(**fields), file=len(store.filed) - 1)


def _too_many(store: Store, capacity: int) -> int:
    return len(store) - (capacity - capacity // 32)


def _until(
    order: Int[np.ndarray, 'k'],
    count: Int[np.ndarray, 'b'],
    enough: int,
    places: Int[np.ndarray, 'b 2'],
) -> list[Place]:
    """The places of the first rows in this order that have ``enough`` cells, or of all of them."""
    stop = np.searchsorted(np.cumsum(count[order]), enough) + 1
    return [(region, slot) for region, slot in places[order[:stop]].tolist()]


def _distance(table: Table, centre: Float[np.ndarray, '3']) -> Float32[np.ndarray, 'b']:
    """From a place to every block."""
    outside = np.maximum(np.maximum(table.lower - centre, centre - table.upper), 0)
    return np.linalg.norm(outside, axis=1).astype(np.float32)
