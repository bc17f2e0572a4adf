"""Requirements on the shipped mirage-tiny, on a map outside its training set."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from mirage_model.camera import Cameras
from mirage_model.clip import Clip
from mirage_model.data.record import maps_of, record_trajectory
from mirage_model.engine.engine import Engine
from mirage_model.interface import ImagineRequest, Observation
from mirage_model.memory.baselines.none import NoMemory
from mirage_model.model.checkpoint import EMBEDDED, load_model
from mirage_model.model.rollout import rollout
from mirage_model.training.simulated_memory import readout_of
from mirage_model.worlds.doom import world_from_optical


@pytest.fixture(scope='module')
def model():
    return load_model()


@pytest.fixture(scope='module')
def clip() -> Clip:
    assert 'MAP03' in maps_of('test')
    return record_trajectory('MAP03', 'forward', frames=17, seed=1, name='drive')


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2) / 255**2))


def test_folder_is_small_and_has_no_pickles():
    files = [path for path in EMBEDDED.rglob('*') if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
    assert {path.suffix for path in files} <= {'.safetensors', '.json', '.md', '.txt'}


def test_the_codec_keeps_colours(model, clip):
    frames = clip.frames.permute(0, 3, 1, 2).float() / 255
    decoded = model.codec.decode(model.codec.encode(frames[None]))[0].clamp(0, 1)

    def chroma(x):
        return x[:, [0, 2]] - x[:, [1]]

    error = (chroma(decoded) - chroma(frames)).abs().mean()
    assert error < 0.6 * chroma(frames).abs().mean()


def test_first_chunk_beats_the_repeated_seed(clip):
    engine = Engine.from_folder()
    engine.seed(
        Observation(
            image=clip.frames[0].numpy(),
            K=clip.cameras.K[0].numpy(),
            world_from_camera=clip.cameras.world_from_camera[0].numpy(),
            time=float(clip.cameras.times[0]),
            depth=clip.depth[0].numpy(),
        )
    )
    chunk = next(
        engine.imagine(
            ImagineRequest(
                request_id='r',
                world_from_camera=clip.cameras.world_from_camera[1:].numpy(),
                times=clip.cameras.times[1:].numpy(),
            )
        )
    )
    truth = clip.frames[1:].numpy()
    assert psnr(chunk.frames, truth) > psnr(
        np.broadcast_to(clip.frames[0].numpy(), truth.shape), truth
    )
    assert chunk.observed.mean() > 0.3


def test_memory_depth_improves_perception(model, clip):
    frames, cameras = clip.frames[8:].permute(0, 3, 1, 2).float() / 255, clip.cameras[8:]
    readout = readout_of(clip, 0, cell=model.codec.spatial_stride)[8:]

    def error(depth: torch.Tensor) -> float:
        return float((depth / clip.depth[8:] - 1).abs().nanmean())

    alone = model.perception.estimate(frames, cameras)
    knowing = model.perception.estimate(frames, cameras, readout)
    assert error(knowing.depth) < 0.8 * error(alone.depth)
    assert knowing.scaled.all() and not alone.scaled.any()


@pytest.mark.parametrize('turn', [1, -1], ids=['right', 'left'])
def test_turn_with_empty_memory_follows_the_camera(model, clip, turn):
    """Compare generated frames with the seed rotated by the same angle, not rotated, and rotated
    back."""
    frames = model.new_frames
    angles = -turn * np.radians(3.0) * np.arange(frames + 1)
    poses = np.stack([world_from_optical(0.0, 0.0, 1.0, angle) for angle in angles])
    cameras = Cameras(
        K=clip.cameras.K[:1].expand(frames + 1, 3, 3),
        world_from_camera=torch.from_numpy(poses).float(),
        times=torch.arange(frames + 1, dtype=torch.float64) / model.config.frame_rate,
        height=clip.cameras.height,
        width=clip.cameras.width,
    )
    seed = clip.frames[:1].permute(0, 3, 1, 2).float() / 255
    chunk = next(
        rollout(
            model,
            NoMemory(model.codec.channels),
            seed,
            cameras[:1],
            cameras[1:],
            steps=model.config.steps,
            generator=torch.Generator().manual_seed(0),
        )
    )
    K = clip.cameras.K[0].double().numpy()
    near = {1: [], 0: [], -1: []}
    for k in (4, 6, 8):
        imagined = chunk.frames[k - 1].permute(1, 2, 0).numpy() * 255
        for way, found in near.items():
            turned = world_from_optical(0.0, 0.0, 1.0, way * angles[k])[:3, :3]
            pixels = K @ poses[0, :3, :3].T @ turned @ np.linalg.inv(K)
            warped = cv2.warpPerspective(
                clip.frames[0].numpy().astype(np.float32),
                pixels,
                (clip.cameras.width, clip.cameras.height),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderValue=(np.nan,) * 3,
            )
            seen = np.isfinite(warped).all(axis=-1)
            found.append(psnr(warped[seen], imagined[seen]))
    assert np.mean(near[1]) > max(np.mean(near[0]), np.mean(near[-1])) + 0.5, near
