from __future__ import annotations

from dataclasses import replace
import multiprocessing
from pathlib import Path

from models import HEIGHT, WIDTH, save_small_model
import numpy as np
import pytest

from mirage_model.engine.engine import Engine
from mirage_model.interface import (
    IMAGINED,
    NOTHING,
    OBSERVED,
    Cancelled,
    CandidatesRequest,
    CoverageScore,
    ImagineRequest,
    InvalidRequest,
    Observation,
    Trajectory,
)
from mirage_model.model.acceleration import Acceleration

K = np.array([[24.0, 0.0, 23.5], [0.0, 24.0, 15.5], [0.0, 0.0, 1.0]])


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp('model'))


@pytest.fixture
def engine(folder) -> Engine:
    return Engine.from_folder(folder)


def view(**changes) -> Observation:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    depth = np.full((HEIGHT, WIDTH), 3.0, dtype=np.float32)
    fields = {
        'image': image,
        'K': K,
        'world_from_camera': np.eye(4),
        'time': 100.0,
        'depth': depth,
    }
    return Observation(**{**fields, **changes})


def request(frames: int = 8, **changes) -> ImagineRequest:
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 2, 3] = 0.05 * np.arange(1, frames + 1)
    times = 100.0 + np.arange(1, frames + 1) / 8
    fields = {'request_id': 'r', 'world_from_camera': poses, 'times': times, 'steps': 2}
    return ImagineRequest(**{**fields, **changes})


def score_of(engine: Engine, path: ImagineRequest) -> CoverageScore:
    return engine.score([Trajectory(world_from_camera=path.world_from_camera, times=path.times)])[
        0
    ]


def test_engine_refines_cameras_if_configured(folder):
    engine = Engine.from_folder(folder, refine_cameras=True)
    engine.seed(view())
    first, second = engine.imagine(request(16))
    assert first.refinement == ()
    assert len(second.refinement) == 2  # latent frames of the first chunk
    assert all('are needed' in reason for reason in second.refinement)


def test_imagine_returns_frames_masks_and_cameras(engine):
    assert engine.seed(view()) == 'sensor'
    chunks = list(engine.imagine(request(16, memory_frames=True)))
    assert [(c.index, c.count) for c in chunks] == [(0, 2), (1, 2)]
    for chunk in chunks:
        assert chunk.frames.shape == (8, HEIGHT, WIDTH, 3) and chunk.frames.dtype == np.uint8
        assert chunk.memory_frames.shape == chunk.frames.shape
        assert chunk.visibility.shape == (8, HEIGHT, WIDTH)
        assert set(np.unique(chunk.visibility)) <= {NOTHING, IMAGINED, OBSERVED}
        np.testing.assert_allclose(
            (chunk.visibility == OBSERVED).mean(axis=(1, 2)), chunk.observed, atol=1e-6
        )
        np.testing.assert_allclose(
            (chunk.visibility > NOTHING).mean(axis=(1, 2)), chunk.visible, atol=1e-6
        )
        assert (chunk.observed <= chunk.visible).all()
        assert (
            chunk.seconds > 0 and chunk.model == 'small-random' and chunk.depth_source == 'sensor'
        )
        np.testing.assert_allclose(chunk.K, K, atol=1e-5)
    assert np.concatenate([c.times for c in chunks]).tolist() == request(16).times.tolist()


def test_chunks_carry_the_time_of_the_newest_observation(engine, tmp_path):
    engine.seed(replace(view(), time=1_700_000_000.25))
    assert {c.observation_time for c in engine.imagine(request(16))} == {1_700_000_000.25}
    engine.observe(replace(view(), time=1_700_000_009.5))
    engine.save(tmp_path / 'memory.safetensors')
    engine.load(tmp_path / 'memory.safetensors', memory='loaded')
    for memory in ('default', 'loaded'):
        assert next(engine.imagine(request(memory=memory))).observation_time == 1_700_000_009.5


def test_request_leaves_the_memory_unchanged_by_default(engine):
    engine.seed(view())
    first = [c.frames for c in engine.imagine(request(16))]
    second = [c.frames for c in engine.imagine(request(16))]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_imagine_needs_a_seed(engine):
    with pytest.raises(InvalidRequest, match='no seed'):
        next(engine.imagine(request()))
    engine.seed(view(), memory='a')
    with pytest.raises(InvalidRequest, match="'b'"):
        next(engine.imagine(request(memory='b')))
    engine.drop(memory='a')
    with pytest.raises(InvalidRequest, match="'a'"):
        next(engine.imagine(request(memory='a')))


def test_unscaled_depth_is_rejected_unless_allowed(engine, folder):
    with pytest.raises(InvalidRequest, match='depth'):
        engine.seed(view(depth=None))
    allowed = Engine.from_folder(folder, allow_unscaled_depth=True)
    assert allowed.seed(view(depth=None)) == 'perception_unscaled'


def test_unscaled_memory_stays_unscaled_until_a_new_seed(engine, folder, tmp_path):
    allowed = Engine.from_folder(folder, allow_unscaled_depth=True)
    allowed.seed(view(depth=None))
    assert allowed.observe(view(depth=None)) == 'perception_unscaled'
    assert allowed.observe(view()) == 'perception_unscaled'
    assert next(allowed.imagine(request())).depth_source == 'perception_unscaled'
    allowed.save(tmp_path / 'guess.safetensors')
    engine.seed(view())
    with pytest.raises(InvalidRequest, match='guess.safetensors: its depth is unscaled'):
        engine.load(tmp_path / 'guess.safetensors')
    assert engine.observe(view()) == 'sensor'
    assert allowed.seed(view()) == 'sensor'
    assert allowed.observe(view()) == 'sensor'


def test_rejected_seed_keeps_the_old_memory(engine):
    engine.seed(view())
    frames = next(engine.imagine(request())).frames
    with pytest.raises(InvalidRequest):
        engine.seed(view(depth=None))
    assert np.array_equal(next(engine.imagine(request())).frames, frames)


BAD_VIEWS = {
    'a pose of three rows': {'world_from_camera': np.eye(4, dtype=np.float32)[:3]},
    'two poses': {'world_from_camera': np.stack([np.eye(4, dtype=np.float32)] * 2)},
    'grey image': {'image': np.zeros((HEIGHT, WIDTH), dtype=np.uint8)},
    'float image': {'image': np.zeros((HEIGHT, WIDTH, 3), dtype=np.float32)},
    'empty image': {'image': np.zeros((0, 0, 3), dtype=np.uint8)},
    'depth without a valid pixel': {'depth': np.zeros((HEIGHT, WIDTH), dtype=np.float32)},
    'a place too far for float32': {
        'world_from_camera': np.array(
            [[1.0, 0, 0, 5e5], [0, 1, 0, 4e6], [0, 0, 1, 0], [0, 0, 0, 1]]
        )
    },
    'depth of another size': {'depth': np.ones((HEIGHT, WIDTH + 1), dtype=np.float32)},
    'K of zeros': {'K': np.zeros((3, 3))},
    'K of another shape': {'K': np.eye(4)},
    'NaN pose': {'world_from_camera': np.full((4, 4), np.nan)},
    'scaled pose': {'world_from_camera': 2 * np.eye(4)},
    'NaN time': {'time': float('nan')},
}


@pytest.mark.parametrize('name', BAD_VIEWS)
def test_invalid_observation_is_rejected(engine, name):
    with pytest.raises(InvalidRequest):
        engine.seed(view(**BAD_VIEWS[name]))
    assert engine.seed(view()) == 'sensor'


BAD_REQUESTS = {
    'a count that does not fit': {**vars(request(7))},
    'no poses': {**vars(request(0))},
    'NaN pose': {'world_from_camera': np.full((8, 4, 4), np.nan)},
    'times of another length': {'times': np.arange(7.0)},
    'no steps': {'steps': 0},
    'too many steps': {'steps': 10**9},
}


@pytest.mark.parametrize('name', BAD_REQUESTS)
def test_invalid_request_is_rejected(engine, name):
    engine.seed(view())
    with pytest.raises(InvalidRequest):
        next(engine.imagine(replace(request(), **BAD_REQUESTS[name])))
    assert next(engine.imagine(request())).index == 0


def test_cancel(engine):
    engine.seed(view())
    with pytest.raises(Cancelled):
        next(engine.imagine(request(), cancelled=lambda: True))


def test_score_equals_masks_of_the_first_chunk(engine):
    engine.seed(view())
    chunk = next(engine.imagine(request()))
    score = score_of(engine, request())
    np.testing.assert_allclose(score.visible, chunk.visible, atol=1e-6)
    np.testing.assert_allclose(score.observed, chunk.observed, atol=1e-6)
    np.testing.assert_allclose(score.age, request().times - 100.0, atol=1e-4)
    away = np.diag([-1.0, 1.0, -1.0, 1.0])[None]
    (score,) = engine.score([Trajectory(world_from_camera=away, times=np.array([101.0]))])
    assert np.isnan(score.age).all()


@pytest.mark.parametrize('coarse', [False, True])
def test_joint_scores_equal_single_scores(engine, coarse):
    engine.seed(view())
    path = request()
    paths = [
        Trajectory(world_from_camera=path.world_from_camera[:n], times=path.times[:n])
        for n in (3, 1, 5)
    ]
    for path, score in zip(paths, engine.score(paths, coarse=coarse), strict=True):
        (alone,) = engine.score([path], coarse=coarse)
        for name in ('visible', 'observed', 'age'):
            np.testing.assert_array_equal(getattr(score, name), getattr(alone, name))
    nothing = Trajectory(world_from_camera=np.zeros((0, 4, 4)), times=np.zeros(0))
    with pytest.raises(InvalidRequest, match='path 1: empty'):
        engine.score([paths[0], nothing], coarse=coarse)
    bent = Trajectory(world_from_camera=np.full((1, 4, 4), np.nan), times=np.array([101.0]))
    with pytest.raises(
        InvalidRequest, match='all paths one after the other: camera 3: transform has'
    ):
        engine.score([paths[0], bent], coarse=coarse)


def test_crop_and_scale_keep_the_coverage(engine):
    """The engine adapts K to crop and scale, so that coverage stays."""
    engine.seed(view())
    expected = score_of(engine, request())
    big = np.zeros((2 * HEIGHT + 20, 2 * WIDTH, 3), dtype=np.uint8)
    depth = np.full(big.shape[:2], 3.0, dtype=np.float32)
    doubled = np.array([[48.0, 0.0, 47.5], [0.0, 48.0, 41.5], [0.0, 0.0, 1.0]])
    engine.seed(view(image=big, depth=depth, K=doubled))
    score = score_of(engine, request())
    np.testing.assert_allclose(score.visible, expected.visible, atol=1e-6)
    np.testing.assert_allclose(next(engine.imagine(request())).K, K, atol=1e-4)


def test_loaded_memory_gives_the_same_frames(engine, folder, tmp_path):
    engine.seed(view())
    expected = next(engine.imagine(request())).frames
    engine.save(tmp_path / 'memory.safetensors')
    fresh = Engine.from_folder(folder)
    fresh.load(tmp_path / 'memory.safetensors')
    assert np.array_equal(next(fresh.imagine(request())).frames, expected)


def test_truncated_file_is_rejected(engine, tmp_path):
    engine.seed(view())
    expected = next(engine.imagine(request())).frames
    path = tmp_path / 'memory.safetensors'
    engine.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidRequest, match=r'memory\.safetensors'):
        engine.load(path)
    with pytest.raises(InvalidRequest, match='nowhere'):
        engine.load(tmp_path / 'nowhere.safetensors')
    assert np.array_equal(next(engine.imagine(request())).frames, expected)


def _serve(connection, folder: Path) -> None:
    engine = Engine.from_folder(folder)
    engine.seed(connection.recv())
    for chunk in engine.imagine(connection.recv()):
        connection.send(chunk)
    connection.close()


@pytest.mark.slow
def test_engine_in_another_process_gives_equal_chunks(engine, folder):
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, folder))
    process.start()
    ours.send(view())
    ours.send(request(16))
    engine.seed(view())
    for chunk in engine.imagine(request(16)):
        received = ours.recv()
        assert np.array_equal(received.frames, chunk.frames)
        assert np.array_equal(received.visibility, chunk.visibility)
    process.join(timeout=60)
    assert process.exitcode == 0


def test_intrinsics_of_the_seed_are_the_default(engine):
    engine.seed(view())
    plain = [chunk.frames for chunk in engine.imagine(request())]
    given = [chunk.frames for chunk in engine.imagine(request(K=K))]
    assert all(np.array_equal(a, b) for a, b in zip(plain, given, strict=True))


@pytest.mark.parametrize(('zoom', 'share'), [(0.5, 0.25), (2.0, 1.0)])
def test_memory_is_read_with_the_intrinsics_of_the_request(engine, zoom, share):
    """At half the focal length the seed fills a quarter of the view, at twice all of it."""
    engine.seed(view())
    zoomed = K.copy()
    zoomed[:2, :2] *= zoom
    here = np.tile(np.eye(4), (8, 1, 1))
    (chunk,) = engine.imagine(request(K=zoomed, world_from_camera=here))
    np.testing.assert_allclose(chunk.K, zoomed, atol=1e-5)
    np.testing.assert_allclose(chunk.observed, share, atol=0.1)


def test_intrinsics_of_a_request_are_scaled_with_its_resolution():
    engine = Engine.from_folder()
    about = engine.describe()
    full = np.array([[200.0, 0, about.width / 2 - 0.5], [0, 210.0, 47.5], [0, 0, 1]])
    engine.seed(view())
    path = request(about.new_frames_per_chunk)
    asked = CandidatesRequest(
        request_id='c',
        trajectories=(Trajectory(world_from_camera=path.world_from_camera, times=path.times),),
        seeds=(0,),
        K=full,
        resolution='half',
        steps=1,
    )
    (candidate,) = engine.imagine_candidates(asked)
    half = [[100.0, 0, about.width / 4 - 0.5], [0, 105.0, 23.5], [0, 0, 1]]
    np.testing.assert_allclose(candidate.chunks[0].K, half, atol=1e-4)


@pytest.mark.parametrize('wrong', [np.eye(4), -K, K * np.nan])
def test_intrinsics_that_are_no_pinhole_are_rejected(engine, wrong):
    engine.seed(view())
    with pytest.raises(InvalidRequest, match='K'):
        next(engine.imagine(request(K=wrong)))


def test_offloaded_engine_gives_equal_frames_after_a_release(folder):
    plain = Engine.from_folder(folder)
    engine = Engine.from_folder(folder, acceleration=Acceleration(offload=True))
    for each in (plain, engine):
        each.seed(view())
    engine.release()
    engine._move_model(engine._device)
    engine._released = False
    (chunk,), (expected,) = engine.imagine(request()), plain.imagine(request())
    assert (chunk.frames == expected.frames).all()
