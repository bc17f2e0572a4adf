"""A remote engine answers as the engine does in process: equal arrays, errors and order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from models import HEIGHT, WIDTH, save_small_model
import numpy as np
import pytest
from servers import ServedEngine, connect, request, serving, view
from test_wire import assert_equal

from mirage_model.engine.engine import Engine
from mirage_model.interface import (
    Cancelled,
    CandidatesRequest,
    EngineProtocol,
    Trajectory,
)
from mirage_model.memory.eviction import MemoryLimits
from mirage_model.serving.remote import RemoteEngine

TIMES = {'seconds', 'stages'}
"""Fields that differ from run to run."""


@pytest.fixture(scope='module')
def small_model(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(params=['instant', pytest.param('small model', marks=pytest.mark.slow)])
def open_engine(request, small_model) -> Callable[[], EngineProtocol]:
    if request.param == 'instant':
        return ServedEngine
    engine = Engine.from_folder(small_model)
    engine.warm()
    return lambda: engine.for_session(MemoryLimits())


@pytest.fixture
def connected(open_engine, tmp_path) -> Iterator[Callable[[], RemoteEngine]]:
    """Connect another client to a server of the engine."""
    with serving(open_engine, folder=tmp_path / 'server') as server:
        yield lambda: connect(server)


@pytest.fixture
def engines(open_engine, connected) -> Iterator[tuple[EngineProtocol, EngineProtocol]]:
    """The engine in process, and a remote one."""
    remote = connected()
    yield open_engine(), remote
    remote.close()


def without_times(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [without_times(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        names = {field.name for field in fields(value)}
        changes = {name: 0.0 if name == 'seconds' else {} for name in TIMES & names}
        if 'chunks' in names:
            changes['chunks'] = tuple(without_times(chunk) for chunk in value.chunks)
        return replace(value, **changes)
    return value


def result_of(task: Callable[[], Any]) -> Any:
    """Return what a task returns, or the type and text of what it raises."""
    try:
        return without_times(task())
    except Exception as error:
        return f'{type(error).__name__}: {error}'


def trajectory(frames: int) -> Trajectory:
    imagine = request(1, frames)
    return Trajectory(world_from_camera=imagine.world_from_camera, times=imagine.times)


def textured(**changes):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    K = np.array([[24.0, 0.0, 23.5], [0.0, 24.0, 15.5], [0.0, 0.0, 1.0]])
    depth = np.full((HEIGHT, WIDTH), 3.0, np.float32)
    return view(**{'image': image, 'K': K, 'depth': depth, **changes})


def calls(engine: EngineProtocol, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield all verbs, right and wrong ones, each with its name."""
    n = engine.describe().new_frames_per_chunk
    moved = np.eye(4)
    moved[0, 3] = 0.5
    candidates = CandidatesRequest(
        request_id='c',
        trajectories=(trajectory(n), trajectory(2 * n)),
        seeds=(1, 2),
        steps=2,
        goal=textured().image,
    )
    yield 'describe', engine.describe
    yield 'imagine without a memory', lambda: list(engine.imagine(request(1, n)))
    yield 'stats without a memory', engine.stats
    yield 'seed', lambda: engine.seed(textured())
    yield 'seed without depth', lambda: engine.seed(textured(depth=None), memory='other')
    yield 'seed a malformed view', lambda: engine.seed(textured(K=np.eye(2)), memory='other')
    yield 'observe', lambda: engine.observe(textured(time=2.0, world_from_camera=moved))
    yield 'imagine', lambda: list(engine.imagine(request(2, n, steps=2, memory_frames=True)))
    yield 'imagine again', lambda: list(engine.imagine(request(2, n, steps=2, seed=3)))
    yield 'imagine a part of a chunk', lambda: list(engine.imagine(request(1, n - 1)))
    yield 'keep', lambda: list(engine.imagine(request(1, n, steps=1, keep_in='kept')))
    yield 'imagine from what was kept', lambda: list(engine.imagine(request(1, n, memory='kept')))
    yield 'candidates', lambda: list(engine.imagine_candidates(candidates))
    yield (
        'candidates at once',
        lambda: list(engine.imagine_candidates(replace(candidates, batch=2))),
    )
    yield 'no candidate', lambda: list(engine.imagine_candidates(replace(candidates, seeds=())))
    yield 'score', lambda: engine.score([trajectory(5), trajectory(n)])
    yield 'score coarsely', lambda: engine.score([trajectory(5)], threshold=0.9, coarse=True)
    yield 'score another memory', lambda: engine.score([trajectory(5)], memory='kept')
    yield 'reanchor', lambda: engine.reanchor(moved)
    yield 'score after it', lambda: engine.score([trajectory(5)])
    yield 'reanchor by no rigid transform', lambda: engine.reanchor(np.zeros((4, 4)), memory='no')
    yield 'points', lambda: engine.points(max_points=50)
    yield 'stats', engine.stats
    yield 'save', lambda: engine.save(folder / 'file', memory='kept')
    yield 'load', lambda: engine.load(folder / 'file', memory='loaded')
    yield 'imagine from what was loaded', lambda: list(engine.imagine(request(1, n, steps=2)))
    yield 'drop', lambda: engine.drop(memory='loaded')
    yield 'drop again', lambda: engine.drop(memory='loaded')
    yield 'stats after it', lambda: engine.stats(memory='loaded')
    yield 'release', engine.release
    yield 'seed after it', lambda: engine.seed(textured())
    yield 'warm', engine.warm
    yield 'seed after warm', lambda: engine.seed(textured())
    yield 'device', engine.device_nbytes


def test_same_requests_give_equal_answers(engines, tmp_path):
    local, remote = engines
    assert isinstance(remote, EngineProtocol) and isinstance(local, EngineProtocol)
    for (name, here), (_, there) in zip(calls(local, tmp_path), calls(remote, tmp_path)):
        wanted, found = result_of(here), result_of(there)
        try:
            assert_equal(wanted, found)
        except AssertionError as error:
            raise AssertionError(f'{name}: {error}') from error


def test_cancel_raises_and_the_next_request_works(engines):
    for engine in engines:
        n = engine.describe().new_frames_per_chunk
        engine.seed(textured())
        asked = iter([False, False])
        with pytest.raises(Cancelled):
            list(engine.imagine(request(4, n, steps=50), cancelled=lambda: next(asked, True)))
        assert len(list(engine.imagine(request(1, n, steps=1)))) == 1


def test_calls_run_while_a_request_runs(engines):
    """The worker answers calls from within ``cancelled``."""
    _, remote = engines
    n = remote.describe().new_frames_per_chunk
    remote.seed(textured())
    scores = []

    def cancelled() -> bool:
        scores.append(remote.score([trajectory(3)])[0].visible.mean())
        return False

    assert len(list(remote.imagine(request(2, n, steps=4), cancelled=cancelled))) == 2
    assert scores


def test_clients_do_not_see_each_other(open_engine, connected):
    one, two = connected(), connected()
    one.seed(textured(), memory='mine')
    assert 'mine' in result_of(lambda: two.stats(memory='mine'))
    two.drop(memory='mine')
    assert one.stats(memory='mine').points > 0
    one.close()
    assert two.describe() == open_engine().describe()
    two.close()


def test_large_images_are_fitted_before_they_are_sent(small_model):
    engine = Engine.from_folder(small_model)
    rng = np.random.default_rng(1)
    size = 8 * HEIGHT, 8 * WIDTH + 30
    large = textured(
        image=rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        depth=rng.uniform(1, 4, size).astype(np.float32),
        K=np.array([[200.0, 0, 180], [0, 200.0, 120], [0, 0, 1]]),
    )
    with serving(lambda: engine.for_session(MemoryLimits())) as server:
        remote = connect(server)
        n = engine.describe().new_frames_per_chunk
        engine.seed(large)
        remote.seed(large)
        assert remote.link().nbytes_kept < large.image.nbytes / 20
        assert_equal(
            without_times(list(engine.imagine(request(1, n)))),
            without_times(list(remote.imagine(request(1, n)))),
        )
        remote.close()
