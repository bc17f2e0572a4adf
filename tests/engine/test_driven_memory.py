"""A memory that a moving robot writes, through the engine."""

from __future__ import annotations

from pathlib import Path

from models import save_small_model
import numpy as np
import pytest
from test_engine import request, score_of, view

from mirage_model.engine.engine import Engine
from mirage_model.interface import InvalidRequest
from mirage_model.memory.eviction import MemoryLimits
from mirage_model.model.rollout import on_latent_grid


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp('model'))


@pytest.fixture
def engine(folder) -> Engine:
    engine = Engine.from_folder(folder)
    engine.seed(view())
    return engine


def far(depth: float) -> dict[str, np.ndarray]:
    return {'depth': np.full(view().depth.shape, depth, np.float32)}


def ahead(engine: Engine) -> np.ndarray:
    """Return the memory's depth at the camera of the seed."""
    session = engine._sessions['default']
    readout = session.memory.readout(on_latent_grid(session.camera, engine.model))
    assert readout.visible.all()
    return readout.depth[0].numpy()


def test_points_seen_through_are_removed(engine):
    """A door three metres ahead opens onto a wall at six; a cell at the border may reach out of
    the view."""
    assert ahead(engine) == pytest.approx(3.0, abs=0.1)
    engine.observe(view(time=101.0, **far(6.0)))
    assert ahead(engine)[1:-1, 1:-1] == pytest.approx(6.0, abs=0.1)


def test_kept_imagination_never_hides_observations(engine):
    before = score_of(engine, request())
    list(engine.imagine(request(16, keep_in='default')))
    after = score_of(engine, request())
    assert (after.observed >= before.observed - 1e-6).all()
    assert (after.visible >= before.visible - 1e-6).all()


def test_keep_in_discards_keeps_or_forks(engine):
    seeded = engine.stats().points
    list(engine.imagine(request(16)))
    assert engine.stats().points == seeded
    list(engine.imagine(request(16, keep_in='fork')))
    assert engine.stats().points == seeded
    grown = engine.stats(memory='fork').points
    assert grown >= seeded
    list(engine.imagine(request(16, keep_in='default')))
    assert engine.stats().points == grown


def test_observation_during_a_request_is_the_next_start(engine):
    running = engine.imagine(request(16, keep_in='default'))
    next(running)
    engine.observe(view(time=150.0))
    list(running)
    assert engine._sessions['default'].camera.times.tolist() == [150.0]
    running = engine.imagine(request(16, keep_in='default'))
    next(running)
    engine.drop()
    list(running)
    with pytest.raises(InvalidRequest, match='no seed'):
        engine.score([])


def test_limits_hold_for_seeded_and_loaded_memories(folder, engine, tmp_path):
    held = engine.stats().points
    bounded = Engine.from_folder(folder, limits=MemoryLimits(capacity=held // 2))
    bounded.seed(view())
    assert 0 < bounded.stats().points <= held // 2
    engine.save(tmp_path / 'whole.safetensors')
    bounded.load(tmp_path / 'whole.safetensors', memory='loaded')
    assert 0 < bounded.stats(memory='loaded').points <= held // 2
    with pytest.raises(ValueError, match="folder: '' is not a folder"):
        Engine.from_folder(folder, limits=MemoryLimits(resident=10))
    paged = Engine.from_folder(folder, limits=MemoryLimits(resident=1, folder=str(tmp_path)))
    paged.load(tmp_path / 'whole.safetensors')
    assert paged.stats().points == held


JUMP = np.array([[0.0, 0, 1, 4], [0, 1, 0, -1], [-1, 0, 0, 2], [0, 0, 0, 1.0]])


def test_reanchored_memory_covers_the_transformed_path(engine):
    before, frames = score_of(engine, request()), next(engine.imagine(request())).frames
    engine.reanchor(JUMP)
    there = request(world_from_camera=JUMP @ request().world_from_camera)
    after = score_of(engine, there)
    np.testing.assert_allclose(after.visible, before.visible, atol=0.05)
    np.testing.assert_allclose(after.age, before.age, atol=1e-3)
    assert np.abs(next(engine.imagine(there)).frames.astype(int) - frames).mean() < 10
    assert score_of(engine, request()).visible.max() < before.visible.max()


@pytest.mark.parametrize(
    'transform', [2 * np.eye(4), np.eye(3), np.full((4, 4), np.nan), np.eye(4)[:, ::-1]]
)
def test_nonrigid_transform_is_rejected(engine, transform):
    before = score_of(engine, request())
    with pytest.raises(InvalidRequest):
        engine.reanchor(transform)
    np.testing.assert_array_equal(score_of(engine, request()).visible, before.visible)


def test_dropped_memory_needs_a_new_seed(engine):
    engine.drop()
    with pytest.raises(InvalidRequest, match='no seed'):
        engine.observe(view())
    assert engine.seed(view()) == 'sensor'


def test_release_keeps_memories_until_warm(engine):
    frames, covered = next(engine.imagine(request())).frames, score_of(engine, request())
    engine.release()
    for verb in (
        lambda: next(engine.imagine(request())),
        lambda: engine.seed(view()),
        lambda: engine.observe(view()),
    ):
        with pytest.raises(InvalidRequest, match='released'):
            verb()
    assert np.array_equal(score_of(engine, request()).visible, covered.visible)
    engine.warm()
    assert np.array_equal(next(engine.imagine(request())).frames, frames)
    assert engine.predicted_seconds(request()) > 0


def test_points_cover_the_memory_in_colour(engine):
    points = engine.points()
    assert len(points.positions) == engine.stats().points == len(points.colours)
    assert points.colours.dtype == np.uint8 and points.observed.all()
    np.testing.assert_allclose(points.positions[:, 2], 3.0, atol=1e-4)
