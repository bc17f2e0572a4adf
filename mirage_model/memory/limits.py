"""Keeping a memory within bounds: forgetting blocks, and putting far ones on disk.

Both work on a draft of a store, block by block, so that they cost little however often they are
called.
"""

from __future__ import annotations

from pathlib import Path
import tempfile
from typing import Literal

from jaxtyping import Float, Float32
import numpy as np

from mirage_model.memory.store import Cells, Store

Policy = Literal['oldest', 'furthest', 'imagined']


def forget(store: Store, capacity: int, policy: Policy, centre: Float[np.ndarray, '3']) -> None:
    """Drop cells until no more than ``capacity`` are left.

    'oldest' drops the blocks that were written to least recently, 'furthest' those furthest from
    ``centre``, 'imagined' first the imagined cells of the oldest blocks, then as 'oldest'.
    """
    if len(store) <= capacity:
        return
    slots = np.array(store.filled())
    if policy == 'furthest':
        slots = slots[np.argsort(-_distance(store, centre)[slots], kind='stable')]
    else:
        slots = slots[np.argsort(store.newest[slots], kind='stable')]
    if policy == 'imagined':
        for slot in slots.tolist():
            block = store.blocks[slot]
            if not block.observed.all():
                store.put(slot, block.take(block.observed))
            if len(store) <= capacity:
                return
        slots = slots[store.count[slots] > 0]
    for slot in slots.tolist():
        store.put(slot, store.blocks[slot].take(np.zeros(0, np.int64)))
        if len(store) <= capacity:
            return


def page_out(store: Store, resident: int, folder: Path, centre: Float[np.ndarray, '3']) -> None:
    """Move blocks, the furthest first, into a file until ``resident`` cells are in memory.

    They stay in the store, mapped from the file: whoever reads them has the system bring them
    back, and a write makes a copy in memory of the block that it changes. The file has no name any
    more, so that it is gone with the last block that uses it, or with the process. A quarter more
    than asked for is moved, so that a file holds many blocks.
    """
    in_memory = np.array([slot for slot in store.filled() if not store.mapped[slot]], np.int64)
    if store.count[in_memory].sum() <= resident:
        return
    far_first = in_memory[np.argsort(-_distance(store, centre)[in_memory], kind='stable')]
    left = store.count[in_memory].sum() - np.cumsum(store.count[far_first])
    moved = far_first[: 1 + int(np.argmax(left <= resident * 3 // 4))].tolist()
    arrays = {slot: list(vars(store.blocks[slot]).items()) for slot in moved}
    with tempfile.TemporaryFile(dir=folder) as file:
        for slot in moved:
            for _, values in arrays[slot]:
                file.write(values.tobytes())
                file.write(bytes(-values.nbytes % 16))
        file.flush()
        mapped = np.asarray(np.memmap(file, dtype=np.uint8, mode='r'))
    start = 0
    for slot in moved:
        fields = {}
        for name, values in arrays[slot]:
            part = mapped[start : start + values.nbytes]
            fields[name] = part.view(values.dtype).reshape(values.shape)
            start += values.nbytes + -values.nbytes % 16
        store.put(slot, Cells(**fields), mapped=True)


def _distance(store: Store, centre: Float[np.ndarray, '3']) -> Float32[np.ndarray, 'b']:
    """From a place to every block."""
    outside = np.maximum(np.maximum(store.lower - centre, centre - store.upper), 0)
    return np.linalg.norm(outside, axis=1).astype(np.float32)
