from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch
from warping import warp_psnr

from mirage_model.camera import check_cameras, directions, unproject
from mirage_model.clip import Clip
from mirage_model.data.record import RecordConfig, reason_to_reject, record_trajectory
from mirage_model.data.splits import maps_of
from mirage_model.worlds.furniture import Solid
from mirage_model.worlds.house import House, build_house
from mirage_model.worlds.rooms import RoomWorld, intrinsics
from mirage_model.worlds.textures import PAINTERS, paint
from mirage_model.worlds.trajectory import KINDS

SCENE = 'room-0004'


@pytest.fixture(scope='module')
def clip() -> Clip:
    return record_trajectory(SCENE, 'wander', frames=25, seed=5, name='clip')


def first_hit(solid: Solid, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Return distances (n,) to a solid in lengths of the rays (n, 3); inf if a ray misses."""
    c, s = np.cos(solid.yaw), np.sin(solid.yaw)
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    c, s = np.cos(solid.turn), np.sin(solid.turn)
    world_from_solid = about_z @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    size = np.array(solid.size)
    start = (origin - solid.centre) @ world_from_solid / size
    ray = rays @ world_from_solid / size
    with np.errstate(divide='ignore', invalid='ignore'):
        slabs = np.sort(np.stack([(-1 - start) / ray, (1 - start) / ray]), axis=0)
        round_axes = {'box': 0, 'cylinder': 2, 'ellipsoid': 3}[solid.shape]
        enter, leave = slabs[0, :, round_axes:], slabs[1, :, round_axes:]
        if round_axes:
            a = (ray[:, :round_axes] ** 2).sum(1)
            b = (ray[:, :round_axes] * start[:round_axes]).sum(1)
            root = np.sqrt(b**2 - a * ((start[:round_axes] ** 2).sum() - 1))
            enter = np.column_stack([enter, (-b - root) / a])
            leave = np.column_stack([leave, (-b + root) / a])
    near, far = enter.max(axis=1), leave.min(axis=1)
    return np.where((near < far) & (near > 0), near, np.inf)


def cast(house: House, offsets: np.ndarray, time: float, origin: np.ndarray, rays: np.ndarray):
    """Return distances (n,) to the nearest static and to the nearest moving solid."""
    static = np.min([first_hit(solid, origin, rays) for solid in house.solids], axis=0)
    moving = np.full(len(rays), np.inf)
    for item, offset in zip(house.dynamic_objects, offsets):
        x, y, z, yaw = item.at(time + offset)
        c, s = np.cos(yaw), np.sin(yaw)
        world_from_item = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        item_origin = (origin - [x, y, z]) @ world_from_item
        for solid in item.solids:
            moving = np.minimum(moving, first_hit(solid, item_origin, rays @ world_from_item))
    return static, moving


@pytest.mark.parametrize('number', [2, 4])
def test_depth_and_labels_equal_rays_cast_at_the_solids(number):
    """Compare every seventh pixel of a level frame and of a frame that looks down."""
    with RoomWorld(f'room-{number:04d}', seed=5) as world:
        level = world.plan('turn', 1, np.random.default_rng(number))[0]
        down = level.copy()
        down[:3, :3] = level[:3, :3] @ Rotation.from_euler('x', -0.4).as_matrix()
        clip = world.record(np.stack([level, down]), np.array([3.7, 9.1]), name='clip')
    grid = directions(clip.cameras[:1])[0, ::7, ::7].double().numpy()
    for i, (pose, time) in enumerate(zip((level, down), (3.7, 9.1))):
        rays = grid.reshape(-1, 3) @ pose[:3, :3].T
        static, moving = cast(world.house, world.time_offsets, time, pose[:3, 3], rays)
        expected = np.minimum(static, moving)
        depth, sky, moves = (
            part[i, ::7, ::7].reshape(-1).numpy() for part in (clip.depth, clip.sky, clip.moving)
        )
        assert (np.isinf(expected) == np.isnan(depth)).mean() > 0.99
        assert (sky == (np.isinf(expected) & ~moves)).mean() > 0.99
        assert not (moving < static).any() or moves[moving < static].mean() > 0.9
        error = (np.abs(depth - expected) / expected)[np.isfinite(expected) & ~np.isnan(depth)]
        # round solids are rendered as facets, and pixels at edges can show either solid
        assert np.median(error) < 1e-4 and (error < 0.02).mean() > 0.99


@pytest.mark.parametrize('gap', [1, 8])
def test_depth_and_cameras_explain_the_frames(clip, gap):
    warped, unwarped = warp_psnr(clip, 4, 4 + gap)
    assert warped > 28 and warped > unwarped + 5


def test_a_clip_is_complete_and_reproducible(clip):
    check_cameras(clip.cameras)
    assert clip.scene == SCENE and 'open sky' in clip.text and reason_to_reject(clip) is None
    again = record_trajectory(SCENE, 'wander', frames=25, seed=5, name='clip')
    for name in ('frames', 'sky', 'moving'):
        assert torch.equal(getattr(clip, name), getattr(again, name)), name
    assert torch.equal(clip.depth.nan_to_num(-1), again.depth.nan_to_num(-1))
    assert torch.equal(clip.cameras.world_from_camera, again.cameras.world_from_camera)
    assert clip.sky.any() and clip.depth[clip.sky].isnan().all()
    assert not (clip.sky & clip.moving).any()


def test_dynamic_objects_are_rendered_and_labelled(clip):
    """Points of moving pixels lie on the line that a dynamic object moves along."""
    house = build_house(4)
    assert clip.moving.any(dim=(1, 2)).float().mean() > 0.3
    points = unproject(clip.depth, clip.cameras)[clip.moving & ~clip.depth.isnan()]
    ends = np.array([item.ends for item in house.dynamic_objects])
    x, y = points[:, 0, None].numpy(), points[:, 1, None].numpy()
    a, b = ends[:, 0], ends[:, 1]
    along = ((x - a[:, 0]) * (b - a)[:, 0] + (y - a[:, 1]) * (b - a)[:, 1]) / ((b - a) ** 2).sum(1)
    along = along.clip(0, 1)
    away = np.hypot(x - a[:, 0] - along * (b - a)[:, 0], y - a[:, 1] - along * (b - a)[:, 1])
    # a pixel is marked if any of its samples moves, so its depth may be that of the wall behind
    assert (away.min(axis=1) < 0.5).mean() > 0.8


def test_size_rate_and_field_of_view_are_options():
    config = RecordConfig(frames=3, height=64, width=64, rate=4.0)
    clip = record_trajectory(SCENE, 'turn', frames=3, seed=0, name='small', config=config)
    assert clip.frames.shape == (3, 64, 64, 3)
    assert clip.cameras.times.tolist() == [0.0, 0.25, 0.5]
    K = intrinsics(90.0, 64, 64)
    assert np.allclose(K, [[32, 0, 31.5], [0, 32, 31.5], [0, 0, 1]])
    with pytest.raises(ValueError, match='room-12'):
        RoomWorld('room-12')


def test_trajectories_keep_clear_of_obstacles():
    world = RoomWorld('room-0002')
    for kind in KINDS:
        poses = world.plan(kind, 33, np.random.default_rng(3))
        assert poses.shape == (33, 4, 4) and (poses[:, 2, 3] == world.house.eye).all()
        assert all(world.house.inside(*pose[:2, 3]) for pose in poses)
        if kind == 'out_and_back':
            assert np.array_equal(poses, poses[::-1])


def test_held_out_rooms_have_an_open_place_to_start_from():
    for split in ('validation', 'test'):
        for scene in maps_of(split, 'rooms'):
            assert len(RoomWorld(scene).plan('turn', 1, np.random.default_rng(0))) == 1


def test_a_house_depends_only_on_its_number():
    def key(house: House):
        return house.rooms, house.solids, house.dynamic_objects, house.finishes, house.text

    assert key(build_house(7)) == key(build_house(7)) != key(build_house(8))
    houses = [build_house(n) for n in range(12)]
    assert any(not r.roofed for h in houses for r in h.rooms) and any(
        r.roofed for h in houses for r in h.rooms
    )
    assert sum(bool(h.dynamic_objects) for h in houses) > 9
    assert {len(h.rooms) for h in houses} == {1, 2, 3}


def test_a_dynamic_object_moves_back_and_forth():
    item = next(m for m in build_house(4).dynamic_objects if m.hop == 0)
    (ax, ay), (bx, by) = item.ends
    assert item.at(0.0)[:2] == pytest.approx((ax, ay))
    assert item.at(item.period / 2)[:2] == pytest.approx((bx, by))
    assert item.at(item.period)[:2] == pytest.approx((ax, ay))
    quarter, back = item.at(item.period / 4), item.at(3 * item.period / 4)
    assert quarter[:2] == pytest.approx(((ax + bx) / 2, (ay + by) / 2)) == back[:2]
    assert abs(quarter[3] - back[3]) == pytest.approx(np.pi)


@pytest.mark.parametrize('painter', PAINTERS)
def test_painters_return_reproducible_colour_textures(painter):
    picture = paint(painter, np.random.default_rng(1), np.array([0.7, 0.3, 0.2]))
    assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8
    assert picture.std() > 5
    assert np.array_equal(
        picture, paint(painter, np.random.default_rng(1), np.array([0.7, 0.3, 0.2]))
    )
