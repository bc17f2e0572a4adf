"""A clip of a house, written as ViPE, COLMAP and the TUM benchmark write, is read back exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
import struct
import zipfile

import cv2
import numpy as np
import OpenEXR
import pytest
from scipy.spatial.transform import Rotation
import torch

from mirage_model.clip import Clip
from mirage_model.data.config import PrepareCommand
from mirage_model.data.posed_frames import Colmap, Tum, read_colmap
from mirage_model.data.prepare import _sources
from mirage_model.data.record import record_trajectory
from mirage_model.data.sources import Layout
from mirage_model.data.vipe import Vipe

LAYOUT = Layout(rate=8.0, least=5, frames=9)


@pytest.fixture(scope='module')
def clip() -> Clip:
    return record_trajectory('room-0030', 'wander', frames=9, seed=1, name='clip')


def intrinsics(clip: Clip) -> tuple[float, float, float, float]:
    K = clip.cameras.K[0].double()
    return float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])


def write_images(folder: Path, clip: Clip, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name, frame in zip(names, clip.frames.numpy()):
        cv2.imwrite(str(folder / name), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))


def assert_same_frames_and_cameras(read: Clip, clip: Clip, *, poses: float = 1e-6) -> None:
    assert torch.equal(read.frames, clip.frames)
    torch.testing.assert_close(read.cameras.K, clip.cameras.K, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        read.cameras.world_from_camera, clip.cameras.world_from_camera, rtol=0, atol=poses
    )
    torch.testing.assert_close(
        read.cameras.times - read.cameras.times[0], clip.cameras.times, rtol=0, atol=1e-6
    )


def write_vipe(root: Path, clip: Clip, *, masks: bool = True) -> tuple[Path, Path]:
    """Write a lossless video, and what ViPE writes for it; object 1 is dynamic, object 2 sky."""
    video, folder = root / 'walk.avi', root / 'vipe'
    height, width = clip.frames.shape[1:3]
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*'FFV1'), 8.0, (width, height))
    for frame in clip.frames.numpy():
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    for kind in ('pose', 'intrinsics', 'depth', 'mask'):
        (folder / kind).mkdir(parents=True)
    inds = np.arange(len(clip.frames))
    np.savez(folder / 'pose/walk.npz', data=clip.cameras.world_from_camera.numpy(), inds=inds)
    fx, fy, cx, cy = intrinsics(clip)
    K = np.tile(np.array([fx, fy, cx + 0.5, cy + 0.5], np.float32), (len(inds), 1))
    np.savez(folder / 'intrinsics/walk.npz', data=K, inds=inds)
    with zipfile.ZipFile(folder / 'depth/walk.zip', 'w') as archive:
        for index, depth in enumerate(clip.depth.numpy()):
            header = {'compression': OpenEXR.ZIP_COMPRESSION, 'type': OpenEXR.scanlineimage}
            half = np.nan_to_num(depth).astype(np.float16)
            OpenEXR.File(header, {'Z': half}).write(str(root / 'frame.exr'))
            archive.write(root / 'frame.exr', f'{index:05d}.exr')
    if masks:
        with zipfile.ZipFile(folder / 'mask/walk.zip', 'w') as archive:
            for index, (moving, sky) in enumerate(zip(clip.moving.numpy(), clip.sky.numpy())):
                content = cv2.imencode('.png', moving.astype(np.uint8) + 2 * sky)[1].tobytes()
                archive.writestr(f'{index:05d}.png', content)
        (folder / 'mask/walk.txt').write_text('1: person\n2: sky\n')
    return video, folder


def test_vipe_is_read_back_exactly(tmp_path, clip):
    sky = torch.zeros_like(clip.sky)
    sky[:, :10] = True
    clip = replace(clip, sky=sky, moving=clip.moving & ~sky)
    video, folder = write_vipe(tmp_path, clip)
    source = Vipe(video=video, folder=folder, layout=LAYOUT)
    (part,) = source.listing().parts
    read = source.load(part)
    assert_same_frames_and_cameras(read, clip)
    half = clip.depth.half().float()
    torch.testing.assert_close(read.depth, half, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(read.moving, clip.moving) and torch.equal(read.sky, clip.sky)
    assert read.labelled and read.metric and read.scene == 'walk'


def test_vipe_without_masks_is_not_labelled(tmp_path, clip):
    video, folder = write_vipe(tmp_path, clip, masks=False)
    source = Vipe(video=video, folder=folder, layout=LAYOUT)
    read = source.load(source.listing().parts[0])
    assert not read.labelled and not read.moving.any()


def test_vipe_frames_without_a_pose_are_left_out(tmp_path, clip):
    video, folder = write_vipe(tmp_path, clip)
    poses = clip.cameras.world_from_camera.numpy()
    np.savez(folder / 'pose/walk.npz', data=poses[2:], inds=np.arange(2, 9))
    listing = Vipe(video=video, folder=folder, layout=LAYOUT).listing()
    assert listing.parts[0].rows == tuple(range(2, 9))
    assert listing.left_out[0][2] == '2 frames lack pose, intrinsics or depth'


def test_vipe_names_a_missing_file(tmp_path, clip):
    video, folder = write_vipe(tmp_path, clip)
    (folder / 'depth/walk.zip').unlink()
    with pytest.raises(ValueError, match='depth/walk.zip: cannot be read as a zip file'):
        Vipe(video=video, folder=folder, layout=LAYOUT).listing()


def write_colmap(folder: Path, clip: Clip, names: list[str], *, binary: bool) -> None:
    """Write cameras and images as COLMAP does, from the corner of the image, and backwards."""
    folder.mkdir(parents=True, exist_ok=True)
    fx, fy, cx, cy = intrinsics(clip)
    numbers = (fx, fy, cx + 0.5, cy + 0.5)
    height, width = clip.frames.shape[1:3]
    camera_from_world = np.linalg.inv(clip.cameras.world_from_camera.double().numpy())
    rows = []
    for name, matrix in reversed(list(zip(names, camera_from_world))):
        x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
        rows.append((name, (w, x, y, z, *matrix[:3, 3])))
    if binary:
        (folder / 'cameras.bin').write_bytes(
            struct.pack('<QiiQQ4d', 1, 1, 1, width, height, *numbers)
        )
        content = struct.pack('<Q', len(rows))
        for number, (name, pose) in enumerate(rows, start=1):
            content += struct.pack('<i7di', number, *pose, 1) + name.encode() + b'\0'
            content += struct.pack('<QddqddQ', 2, 1.0, 2.0, 5, 3.0, 4.0, 2**64 - 1)
        (folder / 'images.bin').write_bytes(content)
        return
    values = ' '.join(map(repr, numbers))
    (folder / 'cameras.txt').write_text(f'# cameras\n1 PINHOLE {width} {height} {values}\n')
    lines = ['# images']
    for number, (name, pose) in enumerate(rows, start=1):
        lines += [f'{number} {" ".join(repr(float(v)) for v in pose)} 1 {name}', '']
    (folder / 'images.txt').write_text('\n'.join(lines) + '\n')


@pytest.mark.parametrize('binary', [False, True])
def test_colmap_is_read_back_exactly(tmp_path, clip, binary):
    names = [f'frame {index:03d}.png' for index in range(len(clip.frames))]
    write_images(tmp_path / 'walk', clip, names)
    write_colmap(tmp_path / 'model', clip, names, binary=binary)
    source = Colmap(frames=tmp_path / 'walk', model=tmp_path / 'model', rate=8.0, layout=LAYOUT)
    (part,) = source.listing().parts
    read = source.load(part)
    assert_same_frames_and_cameras(read, clip)
    assert read.depth.isnan().all() and not read.labelled and not read.metric


def test_colmap_cameras_with_distortion_are_rejected(tmp_path, clip):
    write_colmap(tmp_path, clip, ['a.png'] * 9, binary=False)
    path = tmp_path / 'cameras.txt'
    path.write_text(path.read_text().replace('PINHOLE', 'OPENCV').rstrip() + ' 0 0 0 0\n')
    with pytest.raises(ValueError, match='image_undistorter'):
        read_colmap(tmp_path)


def test_a_damaged_colmap_model_is_rejected(tmp_path, clip):
    write_colmap(tmp_path, clip, ['a.png'] * 9, binary=True)
    path = tmp_path / 'images.bin'
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match='damaged, or not a COLMAP model'):
        read_colmap(tmp_path)


def write_tum(root: Path, clip: Clip, *, lists: bool) -> tuple[Path, Path]:
    folder, trajectory = root / 'walk', root / 'groundtruth.txt'
    stamps = [f'{1311868164.25 + time:.6f}' for time in clip.cameras.times.tolist()]
    names = [f'{stamp}.png' for stamp in stamps]
    if lists:
        write_images(folder / 'rgb', clip, names)
        (folder / 'depth').mkdir()
        for name, depth in zip(names, clip.depth.numpy()):
            image = np.nan_to_num(depth * 1000).round().astype(np.uint16)
            cv2.imwrite(str(folder / 'depth' / name), image)
        for kind in ('rgb', 'depth'):
            lines = [f'{stamp} {kind}/{name}' for stamp, name in zip(stamps, names)]
            (folder / f'{kind}.txt').write_text('# stamp file\n' + '\n'.join(lines) + '\n')
    else:
        write_images(folder, clip, names)
    lines = ['# timestamp tx ty tz qx qy qz qw']
    for stamp, matrix in zip(stamps, clip.cameras.world_from_camera.double().numpy()):
        numbers = [*matrix[:3, 3], *Rotation.from_matrix(matrix[:3, :3]).as_quat()]
        lines.append(f'{stamp} ' + ' '.join(repr(float(number)) for number in numbers))
    trajectory.write_text('\n'.join(lines) + '\n')
    return folder, trajectory


def tum(folder: Path, trajectory: Path, clip: Clip) -> Tum:
    return Tum(
        folder=folder,
        trajectory=trajectory,
        intrinsics=intrinsics(clip),
        depth_scale=1000.0,
        tolerance=0.02,
        pose_gap=0.5,
        layout=LAYOUT,
    )


@pytest.mark.parametrize('lists', [False, True])
def test_tum_is_read_back_exactly(tmp_path, clip, lists):
    source = tum(*write_tum(tmp_path, clip, lists=lists), clip)
    (part,) = source.listing().parts
    read = source.load(part)
    assert_same_frames_and_cameras(read, clip)
    if lists:
        steps = (clip.depth * 1000).round() / 1000
        torch.testing.assert_close(read.depth, steps, rtol=1e-6, atol=0, equal_nan=True)
    else:
        assert read.depth.isnan().all()
    assert read.metric and not read.labelled


def test_tum_frames_outside_the_trajectory_are_left_out(tmp_path, clip):
    folder, trajectory = write_tum(tmp_path, clip, lists=True)
    lines = trajectory.read_text().splitlines()
    trajectory.write_text('\n'.join(lines[:1] + lines[3:]) + '\n')
    listing = tum(folder, trajectory, clip).listing()
    assert listing.parts[0].rows == tuple(range(2, 9))
    assert listing.left_out[0][2] == '2 of 9 frames lack a pose or depth'


def test_a_trajectory_of_other_columns_is_rejected(tmp_path, clip):
    folder, trajectory = write_tum(tmp_path, clip, lists=True)
    trajectory.write_text('1 2 3\n')
    with pytest.raises(ValueError, match='3 columns, 8 are needed'):
        tum(folder, trajectory, clip).listing()


def test_prepare_takes_each_format(tmp_path):
    pair = (tmp_path / 'a', tmp_path / 'b')
    command = PrepareCommand(out=tmp_path, vipe=(pair,), colmap=(pair,), tum=(pair,))
    with pytest.raises(ValueError, match='--intrinsics FX FY CX CY'):
        _sources(command, LAYOUT)
    command = replace(command, intrinsics=(1.0, 1.0, 0.0, 0.0))
    assert [type(source) for source in _sources(command, LAYOUT)] == [Vipe, Colmap, Tum]
