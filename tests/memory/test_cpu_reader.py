"""Tests of the numba kernels against the visibility rule in plain torch."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import scenes
import torch

from mirage_model.camera import check_cameras
from mirage_model.memory import cpu_reader, visibility
from mirage_model.memory.block_store import BlockStore
from mirage_model.memory.points import IMAGINED_BIT, MAX_SERIAL, NO_POINT, LatentPoints
from mirage_model.memory.visibility import CameraArrays, Splats, VisibilityRule

CHANNELS = 2


def store_of(points: Splats, writes: int = 3, *, half: bool = False) -> BlockStore:
    """Return a store of the points after several writes without merging."""
    order = (MAX_SERIAL - np.arange(len(points))).astype(np.uint32)
    order = np.where(points.observed.numpy(), order, order | IMAGINED_BIT)
    hot = torch.cat([points.position, points.size[:, None]], dim=1).T.contiguous().numpy()
    rng, store = np.random.default_rng(0), BlockStore()
    for rows in np.array_split(np.arange(len(points)), writes):
        cells = LatentPoints(
            xyz_size=np.ascontiguousarray(hot[:, rows]),
            order=order[rows],
            depth_time=rng.uniform(0.5, 2, (2, len(rows))).astype(np.float32),
            confidence=np.full(len(rows), 255, np.uint8),
            latents=rng.integers(0, 1 << 14, (len(rows), CHANNELS)).astype(
                np.uint16 if half else np.float32
            ),
        )
        store = store.draft()
        store.insert(cells, np.zeros(len(rows), np.int64), voxel=0.0)
    assert len(store) == len(points)
    return store


def winners(store: BlockStore, views: CameraArrays, rule: VisibilityRule, **options):
    """Return the index of the winning point, in writing order, and its depth by the rule."""
    best = cpu_reader.nearest(store, views, rule, **options).best
    word = torch.from_numpy(best).view(len(views.focal), views.height, views.width)
    index = torch.where(word == NO_POINT, -1, MAX_SERIAL - (word & MAX_SERIAL))
    rank = (word >> 32).int().view(torch.float32)
    return index, torch.where(word == NO_POINT, math.inf, rank)


@settings(max_examples=60, deadline=None)
@given(scenes.points(finite=True), scenes.cameras(), scenes.rules)
def test_nearest_equals_the_torch_rule(points, cameras, rule):
    views = CameraArrays.from_cameras(cameras)
    index, rank = winners(store_of(points), views, rule)
    expected_index, expected_rank = visibility.nearest(points, views, rule)
    assert torch.equal(index, expected_index)
    assert torch.equal(rank, expected_rank)


def crowd(count: int, seed: int = 0, spread: float = 20.0, smallest: float = 0.5) -> Splats:
    generator = torch.Generator().manual_seed(seed)
    return Splats(
        position=(torch.rand(count, 3, generator=generator) - 0.5) * spread,
        size=torch.rand(count, generator=generator) * 1.5 + smallest,
        observed=torch.rand(count, generator=generator) < 0.5,
    )


@pytest.mark.parametrize(('splat_size', 'far'), [(1, math.inf), (5, 6.0)])
def test_threads_equal_the_torch_rule(splat_size, far):
    points, rule = (
        crowd(200_000),
        VisibilityRule(splat_size=splat_size, tolerance=0.05, near=0.05, far=far),
    )
    rng = np.random.default_rng(0)
    poses = [scenes.transform(rng.normal(size=3), rng.normal(size=3)) for _ in range(4)]
    views = CameraArrays.from_cameras(scenes.camera_row(poses, height=12, width=20, fx=10, fy=12))
    store, threads = store_of(points), torch.get_num_threads()
    found = cpu_reader.blocks_in_view(store, views, rule, reach=splat_size // 2)
    torch.set_num_threads(3)
    try:
        assert found.point_counts.sum() > 3 * cpu_reader.POINTS_PER_THREAD or far == 6.0
        index, rank = winners(store, views, rule)
    finally:
        torch.set_num_threads(threads)
    expected_index, expected_rank = visibility.nearest(points, views, rule)
    assert torch.equal(index, expected_index)
    assert torch.equal(rank, expected_rank)


def test_culling_allows_for_inexact_rotations():
    pose = scenes.transform()
    pose[:3, :3] *= 1 - 4.5e-4
    cameras = check_cameras(scenes.camera_row([pose]))
    points = Splats(
        position=torch.tensor([[0.1, 0.1, 9.002]]),
        size=torch.tensor([0.1]),
        observed=torch.tensor([True]),
    )
    rule, views = (
        VisibilityRule(splat_size=1, tolerance=0.05, near=0.05, far=9.0),
        CameraArrays.from_cameras(cameras),
    )
    expected, _ = visibility.nearest(points, views, rule)
    assert expected.max() == 0
    assert torch.equal(winners(store_of(points), views, rule)[0], expected)


def test_observed_depth_ignores_imagined_points():
    points, rule = (
        crowd(2000),
        VisibilityRule(splat_size=3, tolerance=0.05, near=0.05, far=math.inf),
    )
    views = CameraArrays.from_cameras(
        scenes.camera_row([scenes.transform()], height=12, width=20, fx=10, fy=12)
    )
    surface = cpu_reader.observed_depth(store_of(points), views, rule)
    seen = points.observed
    points = Splats(position=points.position[seen], size=points.size[seen], observed=seen[seen])
    assert torch.equal(surface, visibility.nearest(points, views, rule)[1])


@settings(max_examples=40, deadline=None)
@given(
    scenes.points(finite=True),
    scenes.cameras(),
    scenes.rules,
    st.lists(st.sampled_from([0.5, 1.0, 4.0, 50.0, math.nan]), min_size=72, max_size=72),
)
def test_in_free_space_equals_the_torch_rule(points, cameras, rule, depths):
    depth = torch.tensor(depths)[: len(cameras) * 24].view(-1, scenes.HEIGHT, scenes.WIDTH)
    views, store = CameraArrays.from_cameras(cameras), store_of(points)
    gone = set()
    for place, rows in cpu_reader.in_free_space(store, views, depth, rule).items():
        assert rows.any()
        gone |= set(
            (MAX_SERIAL - (store.block(place).order[rows] & MAX_SERIAL).astype(int)).tolist()
        )
    expected = visibility.in_free_space(points, depth, views, rule)
    assert gone == set(expected.nonzero().squeeze(-1).tolist())


def test_blocks_out_of_view_are_not_read():
    points = crowd(4000, spread=120.0, smallest=0.01)
    store = store_of(points)
    views = CameraArrays.from_cameras(
        scenes.camera_row([scenes.transform()], height=12, width=20, fx=10, fy=12)
    )
    rule = VisibilityRule(splat_size=1, tolerance=0.05, near=0.05, far=20.0)
    u, v, depth = visibility.project(
        points.position, views.rotation, views.translation, views.focal, views.centre
    )
    inside = (u > -0.5) & (u < 19.5) & (v > -0.5) & (v < 11.5) & (depth > 0.05) & (depth < 20)
    read = cpu_reader.blocks_in_view(store, views, rule, reach=0).point_counts.sum()
    assert inside.sum() <= read <= 4 * inside.sum() < len(points) / 10
