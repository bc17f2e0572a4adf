"""Tests of the block store: merging, slots, and drafts that do not change published stores."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import oracle
import pytest

from mirage_model.memory.block_store import PAGE_POINTS, BlockStore
from mirage_model.memory.points import (
    BLOCK_VOXELS,
    IMAGINED_BIT,
    MAX_SERIAL,
    LatentPoints,
    block_and_voxel,
    grid_level,
)

coordinates = st.sampled_from([-30.0, -1.0, -0.26, 0.0, 0.1, 0.24, 0.3, 0.6, 40.0]) | st.floats(
    -1e5, 1e5, width=32
)
cells = st.fixed_dictionaries(
    {
        'position': st.tuples(coordinates, coordinates, coordinates),
        'size': st.sampled_from([0.25, 0.4, 0.5, 7.0, 1e-9]),
        'camera': st.integers(0, 2),
        'confidence': st.sampled_from([0, 1, 254, 255]),
    }
)
writes = st.lists(st.tuples(st.lists(cells, max_size=12), st.booleans()), max_size=5)


def cell_at(*position: float, size: float = 1.0, observed: bool = True) -> dict:
    return {'position': position, 'size': size, 'observed': observed, 'confidence': 255}


def packed(part: list[dict], first: int) -> LatentPoints:
    count = len(part)
    order = (MAX_SERIAL - np.arange(first, first + count)).astype(np.uint32)
    if part and not part[0]['observed']:
        order |= IMAGINED_BIT
    hot = [[*cell['position'], cell['size']] for cell in part]
    return LatentPoints(
        xyz_size=np.ascontiguousarray(np.array(hot, np.float32).reshape(count, 4).T),
        order=order,
        depth_time=np.zeros((2, count), np.float32),
        confidence=np.array([cell['confidence'] for cell in part], np.uint8),
        latents=np.arange(first, first + count, dtype=np.float32)[:, None],
    )


def serials(store: BlockStore) -> list[int]:
    held = [
        MAX_SERIAL - int(order & MAX_SERIAL) for block in store.blocks() for order in block.order
    ]
    assert len(held) == len(store)
    return sorted(held)


@settings(max_examples=40, deadline=None)
@given(
    writes,
    st.sampled_from([0.5, 1.0, 2.0]),
    st.booleans(),
)
def test_merging_equals_the_oracle(writes, voxel, displace):
    store, held, serial = BlockStore(), [], 0
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
        camera = np.array([cell['camera'] for cell in part], int)
        if part and not observed:
            free = ~store.in_observed_voxel(new.xyz_size, voxel)
            new, camera = new.take(free), camera[free]
        entered = store.insert(new, camera, voxel=voxel, displace=displace)
        held = oracle.merge(held, part, voxel, displace=displace)
        assert serials(store) == sorted(cell['serial'] for cell in held)
        assert entered == sum(cell['serial'] >= serial for cell in held)
        assert serials(before) == was
        serial += len(part)
    table, places = store.occupied()
    for row, (region, slot) in enumerate(places.tolist()):
        block = store.block((region, slot))
        assert (block.latents[:, 0] == MAX_SERIAL - (block.order & MAX_SERIAL).astype(int)).all()
        for boxes, at in ((table, row), (store, region)):
            assert (boxes.lower[at] <= block.xyz_size[:3].min(axis=1)).all()
            assert (boxes.upper[at] >= block.xyz_size[:3].max(axis=1)).all()
        assert table.count[row] == len(block)
        assert table.imagined[row] == (~block.observed).sum()
        keys = block_and_voxel(block.xyz_size, grid_level(block.xyz_size[3]), voxel)[0]
        assert (keys == keys[0]).all()
    assert store.length == store.count.sum() == table.count.sum() == store.resident


def test_unmerged_block_continues_in_pages():
    part = [cell_at(0.1, 0.1, 0.1)] * (PAGE_POINTS // 2)
    store = BlockStore()
    for write in range(5):
        store.insert(packed(part, write * len(part)), np.zeros(len(part), np.int64), voxel=0.0)
    assert len(store) == 5 * len(part)
    assert sorted(store.occupied()[0].count) == [PAGE_POINTS // 2, PAGE_POINTS, PAGE_POINTS]


def test_empty_block_frees_its_slot():
    store = BlockStore()
    one = packed([cell_at(0, 0, 0)], 0)
    store.insert(one, np.zeros(1, np.int64), voxel=1.0)
    store.put((0, 0), one.take(np.zeros(1, bool)))
    assert len(store) == 0 and not store.blocks() and not store.count.any()
    far = packed([cell_at(99, 0, 0)], 1)
    store.insert(far, np.zeros(1, np.int64), voxel=1.0)
    assert len(store) == 1 and store.occupied()[1].tolist() == [[0, 0]]


@pytest.mark.parametrize('size', [1e-30, 0.1, 1.0, 1e30])
def test_voxel_size_follows_point_size_within_bounds(size):
    points = np.array([[1e30, -1e30, 0.0, size]], np.float32).T
    block, voxel = block_and_voxel(points, grid_level(points[3]), 1.0)
    assert -12 <= block[0, 0] <= 20 and 0 <= voxel[0] < BLOCK_VOXELS**3
    if 1e-3 < size < 1e3:
        assert 2.0 ** block[0, 0] <= size < 2.0 ** (block[0, 0] + 1)


@pytest.mark.parametrize(('size', 'imagined'), [(0.25, 4.0), (4.0, 0.25), (1.0, 1.0)])
def test_in_observed_voxel_checks_all_levels(size, imagined):
    store = BlockStore()
    store.insert(packed([cell_at(0.1, 0.1, 0.1, size=size)], 0), np.zeros(1, int), voxel=1.0)
    within, beside = 0.9 * size, 1.1 * size
    new = [cell_at(x, 0.1, 0.1, size=imagined, observed=False) for x in (within, beside)]
    assert store.in_observed_voxel(packed(new, 1).xyz_size, 1.0).tolist() == [True, False]


def test_draft_copies_only_changed_blocks():
    """Regions and blocks elsewhere stay the same objects."""
    store = BlockStore()
    for x in range(0, 4000, 40):
        store.insert(packed([cell_at(float(x), 0.1, 0.1)], x), np.zeros(1, int), voxel=1.0)
    draft = store.draft()
    draft.insert(packed([cell_at(0.0, 5.0, 0.1)], 5000), np.zeros(1, int), voxel=1.0)
    before, after = {id(block) for block in store.blocks()}, [*draft.blocks()]
    assert len(after) == 100 and sum(id(block) not in before for block in after) == 1
    regions = zip(store._regions, draft._regions)
    assert len(store._regions) > 20 and sum(a is not b for a, b in regions) == 1
