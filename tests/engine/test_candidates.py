"""Candidates from one memory: equal to single requests, within the deadline."""

from __future__ import annotations

from dataclasses import replace
import math
from pathlib import Path
import time

from models import save_small_model
import numpy as np
import pytest
from test_engine import K, request, view
import torch

from mirage_model.camera import Cameras
from mirage_model.engine.engine import Engine
from mirage_model.interface import (
    Cancelled,
    CandidatesRequest,
    Chunk,
    ImagineRequest,
    InvalidRequest,
    Trajectory,
)
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.checkpoint import EMBEDDED, Model, load_model
from mirage_model.model.rollout import RolloutInput, on_latent_grid, rollouts

SEEDS = (5, 5, 9)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp('model'))


@pytest.fixture
def engine(folder) -> Engine:
    engine = Engine.from_folder(folder)
    engine.seed(view())
    return engine


def path(frames: int, sideways: float) -> Trajectory:
    poses = request(frames).world_from_camera.copy()
    poses[:, 0, 3] = sideways * np.arange(1, frames + 1)
    return Trajectory(world_from_camera=poses, times=request(frames).times)


PATHS = (path(16, 0.0), path(8, 0.05), path(16, -0.05))


def candidates(**changes) -> CandidatesRequest:
    fields = {'request_id': 'c', 'trajectories': PATHS, 'seeds': SEEDS, 'steps': 2}
    return CandidatesRequest(**{**fields, **changes})


def alone(engine: Engine, index: int) -> list[Chunk]:
    one = ImagineRequest(request_id='c', seed=SEEDS[index], steps=2, **vars(PATHS[index]))
    return list(engine.imagine(one))


def same(a: Chunk, b: Chunk) -> bool:
    """Compare chunks bit for bit, without their timings."""
    a, b = (vars(replace(chunk, seconds=0.0, stages={})) for chunk in (a, b))
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_unbatched_candidates_equal_single_requests(engine):
    results = list(engine.imagine_candidates(candidates()))
    assert [result.index for result in results] == [0, 1, 2]
    assert all(result.complete and math.isnan(result.goal_distance) for result in results)
    for index, result in enumerate(results):
        expected = alone(engine, index)
        assert len(result.chunks) == len(expected)
        assert all(same(a, b) for a, b in zip(result.chunks, expected, strict=True))
    again = list(engine.imagine_candidates(candidates()))
    assert all(same(a.chunks[-1], b.chunks[-1]) for a, b in zip(results, again, strict=True))


@pytest.mark.parametrize('batch', [2, 3, 8])
def test_batched_candidates_equal_single_requests_nearly(engine, batch):
    results = list(engine.imagine_candidates(candidates(batch=batch)))
    assert [result.index for result in results] == [0, 1, 2]
    assert [len(result.chunks) for result in results] == [2, 1, 2]
    for index, result in enumerate(results):
        expected = alone(engine, index)[0]
        difference = result.chunks[0].frames.astype(int) - expected.frames
        assert np.abs(difference).max() <= 1
        assert np.array_equal(result.chunks[0].visibility, expected.visibility)
        assert result.chunks[0].seed == SEEDS[index]


def first_latents(model: Model, batch: int, paths: int) -> torch.Tensor:
    """Return the latents of the first chunk of each path, as they enter the decoder."""
    height, width = model.config.height, model.config.width
    generator = torch.Generator().manual_seed(1)
    frame = torch.rand(1, 3, height, width, generator=generator)
    K = torch.tensor([[0.5 * width, 0, width / 2], [0, 0.5 * width, height / 2], [0, 0, 1]])
    frames = model.new_frames
    seen = []
    decode = model.codec.decode
    model.codec.decode = lambda latents: seen.append(latents) or decode(latents)
    try:
        for start in range(0, paths, batch):
            branches = []
            for index in range(start, min(start + batch, paths)):
                poses = torch.eye(4).repeat(frames + 1, 1, 1)
                poses[:, 0, 3] = 0.02 * (index - 1) * torch.arange(frames + 1)
                cameras = Cameras(
                    K=K.expand(frames + 1, 3, 3),
                    world_from_camera=poses,
                    times=torch.arange(frames + 1, dtype=torch.float64),
                    height=height,
                    width=width,
                )
                branches.append(
                    RolloutInput(
                        memory=seeded(model, frame, cameras[:1]),
                        frame=frame,
                        camera=cameras[:1],
                        cameras=cameras[1:],
                        generator=torch.Generator().manual_seed(index),
                    )
                )
            for _ in rollouts(model, branches, steps=2, write_last=False):
                pass
    finally:
        del model.codec.decode
    return torch.cat(seen)


def seeded(model: Model, frame: torch.Tensor, camera: Cameras) -> LatentMemory:

    memory = LatentMemory(
        MemoryConfig(channels=model.codec.channels, splat_size=model.config.splat_size)
    )
    grid = on_latent_grid(camera, model)
    size = (1, grid.height, grid.width)
    memory.write(
        model.codec.encode_images(frame),
        torch.full(size, 3.0),
        grid,
        valid=torch.ones(size, dtype=torch.bool),
        observed=True,
    )
    return memory


@pytest.mark.parametrize('weights', ['small', 'mirage-tiny'])
def test_first_chunk_latents_do_not_depend_on_batch(folder, weights):
    model = load_model(folder if weights == 'small' else EMBEDDED)
    one, two = (first_latents(model, batch, 2) for batch in (1, 2))
    assert one.shape == two.shape
    assert (one - two).abs().max() < 1e-3
    assert (one[0] - one[1]).abs().max() > 1e-2  # the seeds differ


def slowly(engine: Engine, seconds: float) -> None:
    """Make each denoising step last ``seconds`` longer."""
    forward = engine.model.backbone.forward

    def slow(*arguments, **keywords):
        time.sleep(seconds)
        return forward(*arguments, **keywords)

    engine.model.backbone.forward = slow


def test_candidates_are_incomplete_after_the_deadline(engine):
    list(engine.imagine_candidates(candidates(batch=2)))
    slowly(engine, 0.4)
    began = time.monotonic()
    results = list(engine.imagine_candidates(candidates(deadline=1.9)))
    assert time.monotonic() - began < 5.0
    assert [result.index for result in results] == [0, 1, 2]
    # two chunks of two steps each take 1.6 s at least: the second candidate is not begun or given
    # up
    assert not results[1].complete and not results[2].complete
    assert results[2].chunks == ()
    assert all(same(a, b) for a, b in zip(results[0].chunks[:1], alone(engine, 0)[:1]))


def test_passed_deadline_returns_empty_candidates(engine):
    results = list(engine.imagine_candidates(candidates(deadline=0.0, batch=2)))
    assert [(result.index, result.complete, result.chunks) for result in results] == [
        (0, False, ()),
        (1, False, ()),
        (2, False, ()),
    ]


def test_cancel_between_two_steps(engine):
    asked = []

    def cancelled() -> bool:
        asked.append(None)
        return len(asked) > 5

    results = engine.imagine_candidates(candidates(), cancelled=cancelled)
    assert next(results).index == 0  # two chunks of two steps
    with pytest.raises(Cancelled):
        next(results)
    assert len(asked) <= 7


def test_out_of_memory_halves_the_batch(engine, caplog):
    expected = list(engine.imagine_candidates(candidates()))
    forward, batches = engine.model.backbone.forward, []

    def narrow(latents, *arguments, **keywords):
        batches.append(len(latents))
        if len(latents) > 1:
            raise torch.OutOfMemoryError('no room for two')
        return forward(latents, *arguments, **keywords)

    engine.model.backbone.forward = narrow
    with caplog.at_level('WARNING'):
        results = list(engine.imagine_candidates(candidates(batch=3)))
    assert batches[0] == 3 and set(batches[1:]) == {1} and 'now 1' in caplog.text
    for ours, theirs in zip(results, expected, strict=True):
        assert all(same(a, b) for a, b in zip(ours.chunks, theirs.chunks, strict=True))


def test_engine_survives_out_of_memory_with_one_candidate(engine):
    expected = alone(engine, 0)
    forward = engine.model.backbone.forward

    def full(*arguments, **keywords):
        raise torch.OutOfMemoryError('no room')

    engine.model.backbone.forward = full
    with pytest.raises(torch.OutOfMemoryError):
        list(engine.imagine_candidates(candidates(batch=2)))
    engine.model.backbone.forward = forward
    assert all(same(a, b) for a, b in zip(alone(engine, 0), expected, strict=True))


def test_goal_distance_uses_the_last_frame(engine):
    last = alone(engine, 1)[-1].frames[-1]
    results = list(engine.imagine_candidates(candidates(goal=last)))
    distances = [result.goal_distance for result in results]
    assert distances[1] == 0 and min(distances[0], distances[2]) > 0
    twice = np.repeat(np.repeat(last, 2, axis=0), 2, axis=1)
    larger = list(engine.imagine_candidates(candidates(goal=twice)))
    assert np.argmin([result.goal_distance for result in larger]) == 1
    grey = np.zeros((4, 4), np.uint8)
    with pytest.raises(InvalidRequest, match='image'):
        next(engine.imagine_candidates(candidates(goal=grey)))


def test_candidates_leave_the_memory_unchanged(engine):
    before, frames = engine.stats(), alone(engine, 0)[0].frames
    list(engine.imagine_candidates(candidates(batch=2)))
    assert engine.stats() == before
    assert np.array_equal(alone(engine, 0)[0].frames, frames)


BAD = {
    'no candidates': {'trajectories': (), 'seeds': ()},
    'a seed too few': {'seeds': (1, 2)},
    'no batch': {'batch': 0},
    'no steps': {'steps': 0},
    'half of 32x48, which is no multiple of 32': {'resolution': 'half'},
    'another memory': {'memory': 'b'},
    'a path that does not fit': {'trajectories': (*PATHS[:2], path(7, 0.0))},
}


@pytest.mark.parametrize('name', BAD)
def test_invalid_request_is_rejected(engine, name):
    with pytest.raises(InvalidRequest):
        next(engine.imagine_candidates(candidates(**BAD[name])))
    assert next(engine.imagine_candidates(candidates())).complete


def test_half_resolution_halves_frames_and_K():
    """Use mirage-tiny, which has a half resolution; points project to the same place."""
    engine = Engine.from_folder()
    about = engine.describe()
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    image = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
    depth = np.full(image.shape[:2], 3.0, np.float32)
    camera = np.array([[80.0, 0, 79.5], [0, 80.0, 47.5], [0, 0, 1]])
    engine.seed(view(image=image, depth=depth, K=camera))
    steady = path(about.new_frames_per_chunk, 0.0)
    asked = candidates(trajectories=(steady,), seeds=(0,), steps=1)
    (full,) = engine.imagine_candidates(asked)
    (half,) = engine.imagine_candidates(replace(asked, resolution='half'))
    (large,), (small,) = full.chunks, half.chunks
    assert small.frames.shape == (16, 48, 80, 3)
    np.testing.assert_allclose(small.K, [[40, 0, 39.5], [0, 40, 23.5], [0, 0, 1]], atol=1e-5)
    assert abs(small.visible.mean() - large.visible.mean()) < 0.1

    fresh = Engine(engine.model)
    fresh.warm()
    whole = fresh.predicted_seconds(asked)
    part = fresh.predicted_seconds(replace(asked, resolution='half'))
    assert part != pytest.approx(whole / 4, rel=1e-6)  # measured, not in proportion to the pixels


def test_predicted_seconds_follow_measured_chunks(engine):
    fresh = Engine(engine.model)
    with pytest.raises(InvalidRequest, match='warm'):
        fresh.predicted_seconds(candidates())
    fresh.warm()
    one = fresh.predicted_seconds(candidates())
    assert one > 0
    assert fresh.predicted_seconds(candidates(steps=4)) > one
    single = fresh.predicted_seconds(request(16, steps=2))
    assert 2 * single < fresh.predicted_seconds(candidates()) < 3 * single  # five chunks, not two
    slowly(engine, 0.1)
    for _ in range(6):
        list(engine.imagine(request(8)))
    began = time.monotonic()
    list(engine.imagine_candidates(candidates()))
    took = time.monotonic() - began
    assert 0.3 * took < engine.predicted_seconds(candidates()) < 3 * took


def test_candidates_have_K_of_the_observation(engine):
    (result, *_) = engine.imagine_candidates(candidates())
    np.testing.assert_allclose(result.chunks[0].K, K, atol=1e-5)
