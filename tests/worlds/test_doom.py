from __future__ import annotations

import numpy as np
import pytest
import torch
from warping import warp_psnr

from mirage_model.camera import check_cameras
from mirage_model.clip import Clip, load_clip, save_clip
from mirage_model.data.record import RecordConfig, reason_to_reject, record_trajectory
from mirage_model.worlds.doom import (
    UNITS_PER_METRE,
    DoomMap,
    cast_depth,
    intrinsics,
    read_map,
    world_from_optical,
)

MAP = 'MAP08'


@pytest.fixture(scope='module')
def clip() -> Clip:
    return record_trajectory(MAP, 'wander', frames=17, seed=4, name='clip')


def room() -> DoomMap:
    """Return a room of 20x20x3 m with a pit of 2 m beyond x = 4 m, under open sky there."""
    size, edge = 320.0, 128.0
    ends = [
        (-size, -size, edge, -size, 0, -1),
        (edge, -size, size, -size, 1, -1),
        (size, -size, size, size, 1, -1),
        (size, size, edge, size, 1, -1),
        (edge, size, -size, size, 0, -1),
        (-size, size, -size, -size, 0, -1),
        (edge, -size, edge, size, 0, 1),
    ]
    # the front of a line is its right side, so the walls go clockwise
    lines = np.array([(x2, y2, x1, y1) for x1, y1, x2, y2, _, _ in ends[:-1]] + [ends[-1][:4]])
    lines[-1] = (edge, size, edge, -size)
    return DoomMap(
        lines=lines,
        front=np.array([0, 1, 1, 1, 0, 0, 0]),
        back=np.array([-1, -1, -1, -1, -1, -1, 1]),
        middle=np.zeros(7, dtype=np.bool_),
        impassable=np.zeros(7, dtype=np.bool_),
        floor=np.array([0.0, -64.0]),
        ceiling=np.array([96.0, 96.0]),
        sky=np.array([False, True]),
    )


def test_cast_depth_equals_hand_computed_planes():
    doom_map = room()
    eye = 41.0
    depth, sky = cast_depth(doom_map, (0.0, 0.0, eye), 0.0, doom_map.floor, doom_map.ceiling)
    K = intrinsics()
    rows = np.arange(96)
    slope = (K[1, 2] - rows) / K[1, 1]
    column = 80
    for row in (0, 20, 47, 60, 80, 95):
        ceiling = (96.0 - eye) / slope[row] if slope[row] > 0 else np.inf
        floor = -eye / slope[row] if slope[row] < 0 else np.inf
        pit = (-64.0 - eye) / slope[row] if slope[row] < 0 else np.inf
        if ceiling < 128:
            expected = ceiling
        elif slope[row] > 0 and ceiling < 320:
            assert sky[row, column]
            continue
        elif floor < 128:
            expected = floor
        else:
            expected = min(pit, 320.0)
        assert depth[row, column] == pytest.approx(expected / UNITS_PER_METRE, rel=1e-4), row


def test_opposite_directions_in_a_symmetric_room_agree():
    doom_map = room()
    heights = doom_map.floor, doom_map.ceiling
    north, _ = cast_depth(doom_map, (-50.0, 0.0, 41.0), np.pi / 2, *heights)
    south, _ = cast_depth(doom_map, (-50.0, 0.0, 41.0), -np.pi / 2, *heights)
    # mirror images, exactly so only at the principal point: compare the column there
    np.testing.assert_allclose(north[:, 80], south[:, 80], rtol=2e-2)


def test_optical_frame_looks_along_yaw():
    east = world_from_optical(1.0, 2.0, 3.0, 0.0)
    assert np.allclose(east @ [0, 0, 1, 1], [2, 2, 3, 1])
    assert np.allclose(east @ [1, 0, 0, 1], [1, 1, 3, 1])  # right of east is south
    assert np.allclose(east @ [0, 1, 0, 1], [1, 2, 2, 1])  # down
    assert np.linalg.det(east[:3, :3]) == pytest.approx(1)


@pytest.mark.parametrize('gap', [1, 8])
def test_depth_and_cameras_explain_the_frames(clip, gap):
    warped, unwarped = warp_psnr(clip, 4, 4 + gap)
    assert warped > 27 and warped > unwarped + 5


def test_a_clip_is_complete_and_reproducible(clip):
    check_cameras(clip.cameras)
    again = record_trajectory(MAP, 'wander', frames=17, seed=4, name='clip')
    assert torch.equal(clip.frames, again.frames)
    assert torch.equal(clip.cameras.world_from_camera, again.cameras.world_from_camera)
    assert clip.depth[clip.sky | clip.moving].isnan().all()
    assert reason_to_reject(clip) is None


def test_a_saved_clip_loads_unchanged(clip, tmp_path):
    save_clip(tmp_path / 'clip.safetensors', clip)
    loaded = load_clip(tmp_path / 'clip.safetensors')
    assert (loaded.name, loaded.scene) == ('clip', MAP)
    assert list(tmp_path.iterdir()) == [tmp_path / 'clip.safetensors']
    for name in ('frames', 'sky', 'moving'):
        assert torch.equal(getattr(loaded, name), getattr(clip, name))
    assert torch.equal(loaded.depth.nan_to_num(-1), clip.depth.nan_to_num(-1))
    assert torch.equal(loaded.cameras.times, clip.cameras.times)


def test_out_and_back_ends_where_it_began():
    out = record_trajectory(MAP, 'out_and_back', frames=9, seed=2, name='loop')
    poses = out.cameras.world_from_camera
    assert torch.allclose(poses[0, :3, 3], poses[-1, :3, 3], atol=0.05)
    assert not torch.allclose(poses[0, :3, 3], poses[4, :3, 3], atol=0.05)


def test_other_maps_and_sizes_are_rejected():
    with pytest.raises(ValueError, match='MAP99'):
        read_map('MAP99')
    with pytest.raises(ValueError, match='64x64 at 8 Hz, Doom is recorded at 96x160 and 8 Hz'):
        config = RecordConfig(height=64, width=64)
        record_trajectory(MAP, 'turn', frames=2, seed=0, name='small', config=config)
