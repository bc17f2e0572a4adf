"""Tests of all memories in rollouts and in the engine."""

from __future__ import annotations

from dataclasses import replace

from models import HEIGHT, WIDTH, save_small_model
import numpy as np
import pytest
import torch

from mirage_model.engine.engine import Engine
from mirage_model.interface import ImagineRequest, InvalidRequest, Observation, Trajectory
from mirage_model.memory.registry import MEMORIES
from mirage_model.model.checkpoint import Model, ModelConfig, load_model
from mirage_model.perception import Estimate

K = np.array([[24.0, 0.0, 23.5], [0.0, 24.0, 15.5], [0.0, 0.0, 1.0]])
FRAMES = 16


class Wall:
    """`Perception` of a world that is three metres away everywhere."""

    segments_dynamic = True
    estimates_cameras = False

    def to(self, device) -> None:
        pass

    def estimate(self, frames, cameras, readout=None) -> Estimate:
        size = (len(frames), *frames.shape[-2:])
        nowhere = torch.zeros(size, dtype=torch.bool)
        return Estimate(
            depth=torch.full(size, 3.0),
            cameras=cameras,
            confidence=torch.ones(size),
            sky=nowhere,
            moving=nowhere,
            moving_probability=nowhere.float(),
            scaled=torch.ones(len(frames), dtype=torch.bool),
        )


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Model:
    model = load_model(save_small_model(tmp_path_factory.mktemp('model')))
    return replace(model, perception=Wall())


def engine_of(model: Model, name: str) -> Engine:
    engine = Engine(replace(model, config=replace(model.config, memory=name)))
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    depth = np.full((HEIGHT, WIDTH), 3.0, dtype=np.float32)
    engine.seed(
        Observation(image=image, K=K, world_from_camera=np.eye(4), time=100.0, depth=depth)
    )
    return engine


def request(**changes) -> ImagineRequest:
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, 2, 3] = 0.05 * np.arange(1, FRAMES + 1)
    times = 100.0 + np.arange(1, FRAMES + 1) / 8
    fields = {'request_id': 'r', 'world_from_camera': poses, 'times': times, 'steps': 2}
    return ImagineRequest(**{**fields, **changes})


@pytest.mark.parametrize('name', MEMORIES)
def test_rollout_runs_with_any_memory(model, name):
    engine = engine_of(model, name)
    first = list(engine.imagine(request(memory_frames=True)))
    second = list(engine.imagine(request()))
    assert len(first) == 2
    for chunk, again in zip(first, second, strict=True):
        assert np.array_equal(chunk.frames, again.frames)  # a fork, and the same twice
        assert chunk.memory_frames.shape == chunk.frames.shape
        assert (chunk.visible > 0.5).all() == (name != 'none')
    assert (first[0].observed > 0.5).all() == (name != 'none')
    empty = list(engine_of(model, 'none').imagine(request()))
    assert np.array_equal(first[0].frames, empty[0].frames) == (name == 'none')


@pytest.mark.parametrize('name', MEMORIES)
def test_kept_rollout_is_written_as_imagined(model, name):
    engine = engine_of(model, name)
    memory = engine._session('default').memory
    before = len(memory)
    turned = request(keep_in='default')
    turned.world_from_camera[8:, :3, :3] = np.diag([-1.0, 1.0, -1.0])
    chunks = list(engine.imagine(turned))
    assert chunks[1].visible.max() == 0  # nothing is behind the camera yet
    assert (len(memory) > before) == (name != 'none')
    behind = Trajectory(world_from_camera=turned.world_from_camera[8:], times=turned.times[8:])
    (score,) = engine.score([behind])
    assert (score.visible.max() > 0.5) == (name != 'none')
    assert score.observed.max() == 0


@pytest.mark.parametrize('name', sorted(set(MEMORIES) - {'latent'}))
def test_only_the_latent_memory_is_saved_and_loaded(model, name, tmp_path):
    path = tmp_path / 'memory.safetensors'
    engine = engine_of(model, name)
    with pytest.raises(InvalidRequest, match=f"'{name}' cannot be saved"):
        engine.save(path)
    engine_of(model, 'latent').save(path)
    with pytest.raises(InvalidRequest, match=f"uses a '{name}' memory"):
        engine.load(path)


def test_frames_are_encoded_only_when_needed(model, monkeypatch):
    encoded = []
    encode = type(model.codec).encode_images

    def counting(codec, frames: torch.Tensor) -> torch.Tensor:
        encoded.append(len(frames))
        return encode(codec, frames)

    monkeypatch.setattr(type(model.codec), 'encode_images', counting)
    counts = {}
    for name in ('latent', 'rgb_cloud', 'none'):
        engine = engine_of(model, name)
        encoded.clear()
        list(engine.imagine(request(keep_in='default')))
        counts[name] = encoded.copy()
    assert counts['latent'] == counts['none'] == [1, 1, 1]  # the context alone
    assert counts['rgb_cloud'] == [1, 3, 1, 3, 1]  # and its renderings, for every readout


def test_unknown_memory_raises(model):
    with pytest.raises(ValueError, match="memory: 'cloud' is unknown"):
        replace(model.config, memory='cloud')
    assert ModelConfig(**vars(model.config)).memory == 'latent'
