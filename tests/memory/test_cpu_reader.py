"""The compiled way through the blocks gives the same bits as the rule in plain torch."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import scenes
import torch

from mirage_model.camera import check_cameras
from mirage_model.memory import cpu_reader, kernels, visibility
from mirage_model.memory.block_store import Store
from mirage_model.memory.points import IMAGINED, LATEST, Cells
from mirage_model.memory.visibility import Points, Rule, Views

CHANNELS = 2


def store_of(points: Points, writes: int = 3, *, half: bool = False) -> Store:
    """The points, none merged, as several writes would have left them."""
    order = (LATEST - np.arange(len(points))).astype(np.uint32)
    order = np.where(points.observed.numpy(), order, order | IMAGINED)
    hot = torch.cat([points.position, points.size[:, None]], dim=1).T.contiguous().numpy()
    rng, store = np.random.default_rng(0), Store()
    for rows in np.array_split(np.arange(len(points)), writes):
        cells = Cells(
            points=np.ascontiguousarray(hot[:, rows]),
            order=order[rows],
            written=rng.uniform(0.5, 2, (2, len(rows))).astype(np.float32),
            confidence=np.full(len(rows), 255, np.uint8),
            latents=rng.integers(0, 1 << 14, (len(rows), CHANNELS)).astype(
                np.uint16 if half else np.float32
            ),
        )
        store = store.draft()
        store.insert(cells, np.zeros(len(rows), np.int64), voxel=0.0)
    assert len(store) == len(points)
    return store


def winners(store: Store, views: Views, rule: Rule, **options):
    """Index of the point that won, in the order of writing, and its word."""
    best = cpu_reader.nearest(store, views, rule, **options).best
    word = torch.from_numpy(best).view(len(views.focal), views.height, views.width)
    index = torch.where(word == kernels.NOTHING, -1, LATEST - (word & LATEST))
    rank = (word >> 32).int().view(torch.float32)
    return index, torch.where(word == kernels.NOTHING, math.inf, rank)


@settings(max_examples=60, deadline=None)
@given(scenes.points(finite=True), scenes.cameras(), scenes.rules)
def test_nearest_equals_the_reference(points, cameras, rule):
    views = Views.of(cameras)
    index, rank = winners(store_of(points), views, rule)
    expected_index, expected_rank = visibility.nearest(points, views, rule)
    assert torch.equal(index, expected_index)
    assert torch.equal(rank, expected_rank)


def crowd(count: int, seed: int = 0, spread: float = 20.0, smallest: float = 0.5) -> Points:
    generator = torch.Generator().manual_seed(seed)
    return Points(
        position=(torch.rand(count, 3, generator=generator) - 0.5) * spread,
        size=torch.rand(count, generator=generator) * 1.5 + smallest,
        observed=torch.rand(count, generator=generator) < 0.5,
    )


@pytest.mark.parametrize(('splat_size', 'far'), [(1, math.inf), (5, 6.0)])
def test_a_crowd_read_by_several_threads_equals_the_reference(splat_size, far):
    points, rule = crowd(200_000), Rule(splat_size=splat_size, tolerance=0.05, near=0.05, far=far)
    rng = np.random.default_rng(0)
    poses = [scenes.transform(rng.normal(size=3), rng.normal(size=3)) for _ in range(4)]
    views = Views.of(scenes.camera_row(poses, height=12, width=20, fx=10, fy=12))
    store, threads = store_of(points), torch.get_num_threads()
    found = cpu_reader.in_view(store, views, rule, reach=splat_size // 2)
    torch.set_num_threads(3)
    try:
        assert found.cells.sum() > 3 * cpu_reader.SERIAL or far == 6.0
        index, rank = winners(store, views, rule)
    finally:
        torch.set_num_threads(threads)
    expected_index, expected_rank = visibility.nearest(points, views, rule)
    assert torch.equal(index, expected_index)
    assert torch.equal(rank, expected_rank)


def test_a_cell_at_the_end_of_a_view_is_found_where_the_rotation_is_off_by_what_is_allowed():
    pose = scenes.transform()
    pose[:3, :3] *= 1 - 4.5e-4
    cameras = check_cameras(scenes.camera_row([pose]))
    points = Points(
        position=torch.tensor([[0.1, 0.1, 9.002]]),
        size=torch.tensor([0.1]),
        observed=torch.tensor([True]),
    )
    rule, views = Rule(splat_size=1, tolerance=0.05, near=0.05, far=9.0), Views.of(cameras)
    expected, _ = visibility.nearest(points, views, rule)
    assert expected.max() == 0
    assert torch.equal(winners(store_of(points), views, rule)[0], expected)


def test_only_observed_cells_make_the_observed_surface():
    points, rule = crowd(2000), Rule(splat_size=3, tolerance=0.05, near=0.05, far=math.inf)
    views = Views.of(scenes.camera_row([scenes.transform()], height=12, width=20, fx=10, fy=12))
    surface = cpu_reader.observed_surface(store_of(points), views, rule)
    seen = points.observed
    points = Points(position=points.position[seen], size=points.size[seen], observed=seen[seen])
    assert torch.equal(surface, visibility.nearest(points, views, rule)[1])


@settings(max_examples=40, deadline=None)
@given(
    scenes.points(finite=True),
    scenes.cameras(),
    scenes.rules,
    st.lists(st.sampled_from([0.5, 1.0, 4.0, 50.0, math.nan]), min_size=72, max_size=72),
)
def test_seen_through_equals_the_reference(points, cameras, rule, depths):
    depth = torch.tensor(depths)[: len(cameras) * 24].view(-1, scenes.HEIGHT, scenes.WIDTH)
    views, store = Views.of(cameras), store_of(points)
    gone = set()
    for place, rows in cpu_reader.seen_through(store, views, depth, rule).items():
        assert rows.any()
        gone |= set((LATEST - (store.block(place).order[rows] & LATEST).astype(int)).tolist())
    expected = visibility.seen_through(points, depth, views, rule)
    assert gone == set(expected.nonzero().squeeze(-1).tolist())


def test_blocks_out_of_view_are_not_read():
    points = crowd(4000, spread=120.0, smallest=0.01)
    store = store_of(points)
    views = Views.of(scenes.camera_row([scenes.transform()], height=12, width=20, fx=10, fy=12))
    rule = Rule(splat_size=1, tolerance=0.05, near=0.05, far=20.0)
    u, v, depth = visibility.project(
        points.position, views.rotation, views.translation, views.focal, views.centre
    )
    inside = (u > -0.5) & (u < 19.5) & (v > -0.5) & (v < 11.5) & (depth > 0.05) & (depth < 20)
    read = cpu_reader.in_view(store, views, rule, reach=0).cells.sum()
    assert inside.sum() <= read <= 4 * inside.sum() < len(points) / 10
