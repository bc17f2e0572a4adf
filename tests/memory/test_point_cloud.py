"""Tests of the point cloud against dictionaries and the visibility rule in torch."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import scenes
import torch

from mirage_model.memory.baselines.point_cloud import PointCloud
from mirage_model.memory.visibility import CameraArrays, Splats, nearest


def voxel_of(point, voxel):
    level = min(max(math.floor(math.log2(float(point[3]))), -12), 20)
    edge = voxel * 2.0**level
    return level, *(math.floor(float(value) / edge) for value in point[:3])


def rows_of(points: Splats) -> np.ndarray:
    return torch.cat([points.position, points.size[:, None]], dim=1).numpy()


writes = st.lists(st.tuples(scenes.points(finite=True), st.booleans()), max_size=3)


def filled(parts, voxel: float) -> tuple[PointCloud, dict]:
    """Return the cloud, and the expected point, value, stamp and observed flag by voxel."""
    cloud, expected, value = PointCloud(values=1, dtype=np.dtype(np.uint8), voxel=voxel), {}, 0
    for stamp, (points, observed) in enumerate(parts):
        rows = rows_of(points)
        values = (value + np.arange(len(rows), dtype=np.int64)).astype(np.uint8)[:, None]
        value += len(rows)
        at, entered = cloud.insert(rows, values, stamp=stamp, observed=observed)
        for k, point in enumerate(rows):
            key = voxel_of(point, voxel)
            assert entered[k] == (observed or key not in expected)
            if entered[k]:
                expected[key] = (tuple(point), int(values[k, 0]), stamp, observed)
            assert voxel_of(cloud.points[at[k]], voxel) == key
    return cloud, expected


def held(cloud: PointCloud) -> dict:
    every = np.arange(len(cloud))
    parts = (cloud.points, cloud.values[:, 0], cloud.stamps(every), cloud.observed(every))
    return {
        voxel_of(point, cloud.voxel): (tuple(point), int(value), int(stamp), bool(observed))
        for point, value, stamp, observed in zip(*parts, strict=True)
    }


@settings(max_examples=40, deadline=None)
@given(writes, st.sampled_from([0.5, 1.0, 1.5]))
def test_voxel_holds_one_point(parts, voxel):
    cloud, expected = filled(parts, voxel)
    assert len(cloud) == len(expected) and held(cloud) == expected
    assert cloud.nbytes == 21 * len(cloud)


def test_many_points_are_found_again():
    rng = np.random.default_rng(0)
    parts = []
    for observed in (True, False, True):
        position = torch.from_numpy(rng.normal(0, 3, (4000, 3)).astype(np.float32))
        size = torch.from_numpy(np.exp(rng.normal(-2, 1, 4000)).astype(np.float32))
        none = torch.zeros(4000, dtype=torch.bool)
        parts.append((Splats(position=position, size=size, observed=none), observed))
    cloud, expected = filled(parts, 1.0)
    assert len(cloud) > 5000 and held(cloud) == expected


@settings(max_examples=50, deadline=None)
@given(writes, scenes.points(finite=True), st.randoms(use_true_random=False))
def test_removed_points_free_their_voxels(parts, more, random):
    cloud, expected = filled(parts, 1.0)
    gone = np.array([random.random() < 0.5 for _ in range(len(cloud))], np.bool_)
    for point in cloud.points[gone]:
        del expected[voxel_of(point, 1.0)]
    cloud.remove(gone)
    assert held(cloud) == expected
    rows = rows_of(more)
    before = set(expected)
    _, entered = cloud.insert(rows, np.zeros((len(rows), 1), np.uint8), stamp=9, observed=False)
    fresh = {voxel_of(point, 1.0) for point in rows} - before
    assert len(cloud) == len(before) + len(fresh) and entered.sum() == len(fresh)


def test_copy_is_independent():
    one = np.array([[0, 0, 1, 0.5]], np.float32)
    cloud = PointCloud(values=1, dtype=np.dtype(np.uint8), voxel=1.0)
    cloud.insert(one, np.array([[7]], np.uint8), stamp=0, observed=True)
    copy = cloud.copy()
    copy.insert(one, np.array([[8]], np.uint8), stamp=1, observed=True)
    copy.insert(one + 4, np.array([[9]], np.uint8), stamp=1, observed=True)
    assert (len(cloud), len(copy)) == (1, 2)
    assert cloud.values.tolist() == [[7]] and copy.values.tolist() == [[8], [9]]


@settings(max_examples=60, deadline=None)
@given(writes, scenes.cameras(), scenes.rules)
def test_nearest_equals_the_torch_rule(parts, cameras, rule):
    cloud, _ = filled(parts, 0.5)
    views = CameraArrays.from_cameras(cameras)
    row, depth = cloud.nearest(views, rule)
    # of equals the rule takes the later: those of the later camera, and there the lower row
    every = np.arange(len(cloud))
    order = np.lexsort((-every, cloud.stamps(every)))
    points = torch.from_numpy(cloud.points[order].copy())
    index, _ = nearest(
        Splats(
            position=points[:, :3],
            size=points[:, 3],
            observed=torch.from_numpy(cloud.observed(order)),
        ),
        views,
        rule,
    )
    expected = np.append(order, -1)[index.numpy()]
    assert np.array_equal(row, expected)
    assert np.array_equal(row < 0, np.isnan(depth))


def test_depth_is_that_of_the_point():
    cloud = PointCloud(values=1, dtype=np.dtype(np.uint8), voxel=1.0)
    points = np.array([[0.125, 0, 2, 4.0]], np.float32)
    cloud.insert(points, np.array([[1]], np.uint8), stamp=0, observed=False)
    _, depth = cloud.nearest(
        CameraArrays.from_cameras(scenes.camera_row([scenes.transform()])),
        scenes.VisibilityRule(splat_size=3, tolerance=0.05, near=0.1, far=9.0),
    )
    assert np.nanmax(depth) == np.nanmin(depth) == 2
