"""Cameras obey their identities over batch shapes, and wrong ones are rejected."""

from __future__ import annotations

from dataclasses import replace
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

from mirage_model.camera import (
    Cameras,
    check_cameras,
    check_rigid,
    concatenate,
    directions,
    invert,
    project,
    rays,
    resized,
    unproject,
)

BATCHES = [(), (1,), (3,), (2, 3)]
EPOCH = 1_763_822_160.0


def random_cameras(batch=(), seed=0, height=6, width=8) -> Cameras:
    rng = np.random.default_rng(seed)
    count = math.prod(batch)
    transforms = np.tile(np.eye(4), (count, 1, 1))
    transforms[:, :3, :3] = Rotation.random(count, rng=rng).as_matrix()
    transforms[:, :3, 3] = rng.uniform(-10, 10, (count, 3))
    K = np.tile(np.eye(3), (count, 1, 1))
    K[:, [0, 1], [0, 1]] = rng.uniform(3, 9, (count, 2))
    K[:, :2, 2] = rng.uniform(2, 4, (count, 2))
    return Cameras(
        K=torch.tensor(K, dtype=torch.float32).reshape(*batch, 3, 3),
        world_from_camera=torch.tensor(transforms, dtype=torch.float32).reshape(*batch, 4, 4),
        times=torch.arange(count, dtype=torch.float64).reshape(batch),
        height=height,
        width=width,
    )


def pixel_grid(cameras: Cameras):
    y, x = torch.meshgrid(torch.arange(cameras.height), torch.arange(cameras.width), indexing='ij')
    return torch.stack([x, y], dim=-1).float().reshape(-1, 2)


def random_depth(cameras: Cameras, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (*cameras.K.shape[:-2], cameras.height, cameras.width)
    return torch.rand(shape, generator=generator) * 20 + 0.1


@pytest.mark.parametrize('batch', BATCHES)
def test_transform_times_inverse_is_identity(batch):
    world_from_camera = random_cameras(batch).world_from_camera
    identity = torch.eye(4).expand_as(world_from_camera)
    camera_from_world = invert(world_from_camera)
    torch.testing.assert_close(world_from_camera @ camera_from_world, identity, atol=1e-5, rtol=0)
    torch.testing.assert_close(camera_from_world @ world_from_camera, identity, atol=1e-5, rtol=0)
    torch.testing.assert_close(invert(camera_from_world), world_from_camera, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(BATCHES), st.integers(0, 1000))
def test_project_after_unproject_is_the_pixel_grid(batch, seed):
    cameras = random_cameras(batch, seed)
    depth = random_depth(cameras, seed)
    pixels, projected_depth = project(unproject(depth, cameras).flatten(-3, -2), cameras)
    torch.testing.assert_close(projected_depth, depth.flatten(-2), atol=1e-4, rtol=1e-4)
    grid = pixel_grid(cameras).expand_as(pixels)
    # a millimetre of float32 at 10 m from the origin is many pixels at 0.1 m from the camera
    torch.testing.assert_close(pixels, grid, atol=2e-3, rtol=0)


def test_principal_point_unprojects_onto_the_axis():
    cameras = random_cameras()
    K = torch.tensor([[5.0, 0, 3], [0, 5, 2], [0, 0, 1]])
    cameras = replace(cameras, K=K, world_from_camera=torch.eye(4))
    points = unproject(torch.ones(6, 8), cameras)
    assert points[2, 3].tolist() == [0, 0, 1]
    assert points[2, 4, 0] > 0 and points[3, 3, 1] > 0  # x to the right, y down


@pytest.mark.parametrize('batch', BATCHES)
@pytest.mark.parametrize('size', [(3, 4), (12, 16), (6, 2)])
def test_resizing_keeps_the_view(batch, size):
    cameras = random_cameras(batch)
    other = resized(cameras, *size)
    back = resized(other, cameras.height, cameras.width)
    torch.testing.assert_close(back.K, cameras.K)
    points = unproject(random_depth(cameras), cameras).flatten(-3, -2)
    pixels, depth = project(points, cameras)
    other_pixels, other_depth = project(points, other)
    scale = torch.tensor([size[1] / cameras.width, size[0] / cameras.height])
    torch.testing.assert_close(other_depth, depth)
    torch.testing.assert_close(other_pixels, (pixels + 0.5) * scale - 0.5, atol=1e-3, rtol=1e-4)


def test_resizing_keeps_the_image_corners():
    cameras = resized(random_cameras((2,)), 3, 2)
    assert (cameras.height, cameras.width) == (3, 2)
    original = random_cameras((2,))
    for name, at, small_at in [('left', -0.5, -0.5), ('right', 7.5, 1.5)]:
        slope = (at - original.K[:, 0, 2]) / original.K[:, 0, 0]
        small_slope = (small_at - cameras.K[:, 0, 2]) / cameras.K[:, 0, 0]
        torch.testing.assert_close(slope, small_slope, msg=name)


@pytest.mark.parametrize('batch', [(1,), (3,), (2, 3)])
def test_rays_hit_unprojected_points(batch):
    cameras = random_cameras(batch)
    reference = cameras[(*[slice(None)] * (len(batch) - 1), 0)]
    depth = random_depth(cameras)
    result = rays(cameras, reference)
    assert result.shape == (*batch, 6, cameras.height, cameras.width)
    direction, origin = result.movedim(-3, -1).split(3, dim=-1)
    torch.testing.assert_close(direction.norm(dim=-1), torch.ones(depth.shape))
    length = depth * directions(cameras).norm(dim=-1)
    reference_from_world = invert(reference.world_from_camera)[..., None, None, :, :]
    points = unproject(depth, cameras)
    points = points @ reference_from_world[..., :3, :3].mT + reference_from_world[..., None, :3, 3]
    torch.testing.assert_close(
        origin + direction * length[..., None], points, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        origin[..., 0, :, :, :] if len(batch) > 1 else origin[0],
        torch.zeros_like(origin[..., 0, :, :, :] if len(batch) > 1 else origin[0]),
        atol=1e-5,
        rtol=0,
    )


def test_concatenate_and_index():
    cameras = random_cameras((3,))
    joined = concatenate([cameras[:1], cameras[1:]])
    assert len(joined) == 3
    for name in ('K', 'world_from_camera', 'times'):
        assert torch.equal(getattr(joined, name), getattr(cameras, name))
    with pytest.raises(ValueError, match='image sizes are .*, must be equal'):
        concatenate([cameras, resized(cameras, 3, 4)])


def edited(name, index, value) -> Cameras:
    cameras = random_cameras((4,))
    values = getattr(cameras, name).clone()
    values[index] = value
    return replace(cameras, **{name: values})


@pytest.mark.parametrize(
    ('name', 'index', 'value', 'message'),
    [
        ('K', (2, 0, 0), 0.0, 'camera 2: K is not'),
        ('K', (1, 1, 1), -5.0, 'camera 1: K is not'),
        ('K', (3, 0, 2), math.nan, 'camera 3: K is not'),
        ('K', (3, 0, 1), 0.1, 'camera 3: K is not'),
        ('K', (0, 2, 2), 2.0, 'camera 0: K is not'),
        ('world_from_camera', (1, 0, 3), math.inf, 'camera 1: transform has NaN or infinite'),
        ('world_from_camera', (2, 1, 1), math.nan, 'camera 2: transform has NaN or infinite'),
        ('world_from_camera', (3, 3, 0), 1.0, 'camera 3: transform is not rigid'),
        ('world_from_camera', (2, slice(3), slice(3)), 0.0, 'camera 2: transform is not rigid'),
        ('world_from_camera', (2, slice(3), slice(3)), -torch.eye(3), 'camera 2: .* not rigid'),
        ('world_from_camera', (0, slice(3), slice(3)), 2 * torch.eye(3), 'camera 0: .* not rigid'),
        ('times', 3, math.nan, 'camera 3: time is not finite'),
    ],
)
def test_invalid_cameras_raise_with_their_index(name, index, value, message):
    with pytest.raises(ValueError, match=message):
        check_cameras(edited(name, index, value))


def test_valid_cameras_pass_unchanged():
    for batch in BATCHES:
        cameras = random_cameras(batch)
        assert check_cameras(cameras) is cameras
    with pytest.raises(ValueError, match='cameras: there are none'):
        check_cameras(random_cameras((3,))[:0])
    with pytest.raises(ValueError, match='0x8'):
        check_cameras(replace(random_cameras((1,)), height=0))
    check_rigid(torch.zeros(0, 4, 4))
