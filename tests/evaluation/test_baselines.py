from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path

import cv2
from models import save_first_guess_model
import numpy as np
import pytest
import torch

from mirage_model.camera import Cameras
from mirage_model.cli import main
from mirage_model.evaluation.baselines import (
    flat_colour,
    repeat_seed,
    warp_and_inpaint,
    warp_observation,
)
from mirage_model.evaluation.office import read_office
from mirage_model.image_fit import fit_image
from mirage_model.interface import Observation
from mirage_model.metrics import psnr


def cameras_at(positions: list[float], height: int = 24, width: int = 32) -> Cameras:
    world_from_camera = torch.eye(4).repeat(len(positions), 1, 1)
    world_from_camera[:, 0, 3] = torch.tensor(positions)
    K = torch.tensor([[20.0, 0.0, width / 2], [0.0, 20.0, height / 2], [0.0, 0.0, 1.0]])
    return Cameras(
        K=K.expand(len(positions), 3, 3),
        world_from_camera=world_from_camera,
        times=torch.arange(len(positions), dtype=torch.float64),
        height=height,
        width=width,
    )


@pytest.fixture
def seed() -> torch.Tensor:
    return torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0))


def test_warp_at_the_seed_camera_is_the_seed(seed):
    camera = cameras_at([0.0])
    depth = torch.full((24, 32), 2.0)
    depth[3:9, 4:12] = torch.nan
    warped = warp_and_inpaint(seed, depth, camera, camera)
    assert psnr(warped[0], seed) > 50


def test_warp_moves_pixels_by_their_disparity(seed):
    # 0.2 m at 2 m and a focal length of 20 px are 2 px
    warped = warp_and_inpaint(
        seed, torch.full((24, 32), 2.0), cameras_at([0.0]), cameras_at([0.2])
    )
    assert psnr(warped[0, :, :, :-3], seed[:, :, 2:-1]) > 40


def test_warp_of_an_observation_is_at_the_size_of_the_model(seed):
    cameras = cameras_at([0.0, 0.0, 0.4], height=48, width=64)
    first, *others = [
        Observation(
            image=(seed.repeat(1, 2, 2).movedim(0, -1) * 255).byte().numpy(),
            K=cameras.K[index].double().numpy(),
            world_from_camera=cameras.world_from_camera[index].double().numpy(),
            time=0.0,
            depth=np.full((48, 64), 2.0, np.float32),
        )
        for index in range(3)
    ]
    warped = warp_observation([first, *others], 24, 32)
    assert warped is not None and warped.shape == (2, 24, 32, 3)
    fitted = fit_image(first.image, 24, 32)
    np.testing.assert_array_equal(warped[0], fitted)
    # 0.4 m at 2 m and a focal length of 10 px are 2 px
    assert psnr(warped[1, :, :-3] / 255, fitted[:, 2:-1] / 255) > 40
    assert warp_observation([replace(first, depth=None), *others], 24, 32) is None


def test_nearest_surface_hides_the_others():
    seed = torch.zeros(3, 24, 32)
    seed[:, :, 16:] = 1.0
    depth = torch.full((24, 32), 4.0)
    depth[:, 16:] = 1.0
    # near pixels move by 8, far ones by 2
    warped = warp_and_inpaint(seed, depth, cameras_at([0.0]), cameras_at([0.4]))
    assert (warped[0, :, :, 9:22] > 0.9).all() and (warped[0, :, :, :7] < 0.1).all()


def test_repeated_seed_and_flat_colour(seed):
    assert torch.equal(repeat_seed(seed, 3)[2], seed)
    flat = flat_colour(seed, 2)
    assert flat.shape == (2, 3, 24, 32)
    torch.testing.assert_close(flat[1, :, 5, 7], seed.mean(dim=(1, 2)))


def save_office(folder: Path, count: int) -> Path:
    for name in ('rgb', 'depth'):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        depth = np.full((48, 64), 2500, np.uint16)
        depth[:10] = 0
        cv2.imwrite(str(folder / f'rgb/{index:04d}.jpg'), image)
        cv2.imwrite(str(folder / f'depth/{index:04d}.png'), depth)
    np.savetxt(folder / 'poses.txt', np.tile(np.eye(4).reshape(1, 16), (count, 1)))
    np.savetxt(folder / 'K.txt', [[30, 0, 31.5], [0, 30, 23.5], [0, 0, 1]])
    return folder


def test_office_clips_have_metric_depth_and_no_labels(tmp_path):
    folder = save_office(tmp_path / 'office', 12)
    clips = read_office(folder, count=2, frames=9, height=32, width=48, rate=8.0)
    assert [clip.name for clip in clips] == ['office-0000', 'office-0003']
    clip = clips[1]
    assert clip.frames.shape == (9, 32, 48, 3) and not clip.sky.any() and not clip.moving.any()
    assert clip.depth[:, 10:].unique().tolist() == [2.5] and clip.depth[:, 0].isnan().all()
    with pytest.raises(ValueError, match='12 frames are too few, 13 are needed'):
        read_office(folder, count=1, frames=13, height=32, width=48, rate=8.0)
    (folder / 'rgb/0003.jpg').unlink()
    with pytest.raises(ValueError, match=r'0003\.jpg: not an image'):
        read_office(folder, count=2, frames=9, height=32, width=48, rate=8.0)
    (folder / 'K.txt').unlink()
    with pytest.raises(ValueError, match=r'K\.txt: the file is missing'):
        read_office(folder, count=2, frames=9, height=32, width=48, rate=8.0)


@pytest.mark.slow
def test_office_set_is_evaluated_beside_another_model(tmp_path, capsys):
    office = save_office(tmp_path / 'office', 12)
    model = save_first_guess_model(tmp_path / 'model')
    before = save_first_guess_model(tmp_path / 'before', seed=1)
    words = f'evaluate tiny --model {model} --before {before} --trajectories 0 --houses 0'
    words += f' --office {office} --office-starts 2 --workers 1 --out {tmp_path / "out"}'
    assert main(words.split()) == 0
    summary = json.loads((tmp_path / 'out' / 'tiny.json').read_text())['office']
    assert summary['n'] == 2
    # saved maps of the resampler are rounded to 16 bits
    guess = summary['guess_first_psnr_db']
    assert guess == pytest.approx(summary['first_psnr_db'], abs=1e-3)
    for name in ('first_psnr_db', 'before_first_psnr_db', 'frames_per_second_before'):
        assert summary[name] > 0 and f'{name}_se' in summary
