"""What mirage-tiny, as it is shipped, must do on a map it was not trained on."""

from __future__ import annotations

import numpy as np
import pytest

from mirage_model.checkpoint import EMBEDDED, load_model
from mirage_model.data.clip import Clip
from mirage_model.data.record import maps_of, record_drive
from mirage_model.engine import Engine
from mirage_model.interface import Imagine, View


@pytest.fixture(scope='module')
def model():
    return load_model()


@pytest.fixture(scope='module')
def clip() -> Clip:
    assert 'MAP03' in maps_of('test')
    return record_drive('MAP03', 'forward', frames=17, seed=1, name='drive')


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2) / 255**2))


def test_it_is_small_and_holds_safetensors_alone():
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


def test_imagined_frames_are_nearer_to_the_truth_than_the_seed_repeated(clip):
    engine = Engine.from_folder()
    engine.seed(
        View(
            image=clip.frames[0].numpy(),
            K=clip.cameras.K[0].numpy(),
            world_from_camera=clip.cameras.world_from_camera[0].numpy(),
            time=float(clip.cameras.times[0]),
            depth=clip.depth[0].numpy(),
        )
    )
    chunk = next(
        engine.imagine(
            Imagine(
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
