"""Blocks of cells: what merges, what stays, and that a published store never changes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import oracle
import pytest

from mirage_model.memory.store import IMAGINED, LATEST, PAGE, VOXELS, Cells, Store, locate

coordinates = st.sampled_from([-30.0, -1.0, -0.26, 0.0, 0.1, 0.24, 0.3, 0.6, 40.0]) | st.floats(
    -1e5, 1e5, width=32
)
cells = st.fixed_dictionaries(
    {
        'position': st.tuples(coordinates, coordinates, coordinates),
        'size': st.sampled_from([0.25, 0.4, 0.5, 7.0, 1e-9]),
        'camera': st.integers(0, 2),
    }
)
writes = st.lists(st.tuples(st.lists(cells, max_size=12), st.booleans()), max_size=5)


def packed(part: list[dict], first: int) -> Cells:
    count = len(part)
    order = (LATEST - np.arange(first, first + count)).astype(np.uint32)
    if part and not part[0]['observed']:
        order |= IMAGINED
    hot = [[*cell['position'], cell['size']] for cell in part]
    return Cells(
        points=np.ascontiguousarray(np.array(hot, np.float32).reshape(count, 4).T),
        order=order,
        written=np.zeros((2, count), np.float32),
        confidence=np.full(count, 255, np.uint8),
        latents=np.arange(first, first + count, dtype=np.float32)[:, None],
    )


def serials(store: Store) -> list[int]:
    held = [
        LATEST - int(order & LATEST)
        for slot in store.filled()
        for order in store.blocks[slot].order
    ]
    assert len(held) == len(store)
    return sorted(held)


@settings(max_examples=40, deadline=None)
@given(writes, st.sampled_from([0.5, 1.0, 2.0]))
def test_merging_equals_the_loops(writes, voxel):
    store, held, serial = Store(), [], 0
    for part, observed in writes:
        part = sorted(part, key=lambda cell: cell['camera'])
        part = [
            cell
            | {'observed': observed, 'serial': serial + index, 'size': np.float32(cell['size'])}
            for index, cell in enumerate(part)
        ]
        before, store = store, store.draft()
        was = serials(before)
        new = packed(part, serial)
        entered = store.insert(new, np.array([cell['camera'] for cell in part], int), voxel=voxel)
        held = oracle.merge(held, part, voxel)
        assert serials(store) == sorted(cell['serial'] for cell in held)
        assert entered == sum(cell['serial'] >= serial for cell in held)
        assert serials(before) == was
        serial += len(part)
    for slot in store.filled():
        block = store.blocks[slot]
        assert (block.latents[:, 0] == LATEST - (block.order & LATEST).astype(int)).all()
        assert (store.lower[slot] <= block.points[:3].min(axis=1)).all()
        assert (store.upper[slot] >= block.points[:3].max(axis=1)).all()
        assert (locate(block.points, voxel)[0] == store.key_of[slot]).all()


def test_where_nothing_merges_a_crowded_block_goes_on_in_pages():
    part = [{'position': (0.1, 0.1, 0.1), 'size': 1.0, 'observed': True}] * (PAGE // 2)
    store = Store()
    for write in range(5):
        store.insert(packed(part, write * len(part)), np.zeros(len(part), np.int64), voxel=0.0)
    assert len(store) == 5 * len(part)
    assert sorted(store.count[store.filled()]) == [PAGE // 2, PAGE, PAGE]


def test_an_empty_block_gives_its_slot_back():
    store = Store()
    one = packed([{'position': (0, 0, 0), 'size': 1.0, 'observed': True}], 0)
    store.insert(one, np.zeros(1, np.int64), voxel=1.0)
    store.put(0, one.take(np.zeros(1, bool)))
    assert len(store) == 0 and not store.slot_of and len(store.filled()) == 0
    far = packed([{'position': (99, 0, 0), 'size': 1.0, 'observed': True}], 1)
    store.insert(far, np.zeros(1, np.int64), voxel=1.0)
    assert len(store.blocks) == 1 and len(store) == 1


@pytest.mark.parametrize('size', [1e-30, 0.1, 1.0, 1e30])
def test_voxels_follow_the_size_within_bounds(size):
    points = np.array([[1e30, -1e30, 0.0, size]], np.float32).T
    block, voxel = locate(points, 1.0)
    assert -12 <= block[0, 0] <= 20 and 0 <= voxel[0] < VOXELS**3
    if 1e-3 < size < 1e3:
        assert 2.0 ** block[0, 0] <= size < 2.0 ** (block[0, 0] + 1)
