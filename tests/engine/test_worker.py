"""Each job of the worker ends with one outcome."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
import random
import threading
import time

from instant_engine import InstantEngine
import numpy as np
import pytest

from mirage_model.engine.worker import Job, Outcome, Worker
from mirage_model.interface import CandidatesRequest, ImagineRequest, Observation, Trajectory


class JobRecorder:
    """Make jobs and record their answers."""

    def __init__(self, engine: InstantEngine, queue_size: int = 8):
        self.worker = Worker(engine, queue_size=queue_size)
        self.outcomes: dict[str, list[Outcome]] = {}
        self.chunks: dict[str, list] = {}
        self._changed = threading.Condition()

    def job(
        self,
        name: str,
        *,
        frames: int = 16,
        steps: int = 1,
        value: int = 50,
        depth: bool = True,
        replaceable: bool = False,
        **how,
    ) -> Job:
        padded = -(-frames // 16) * 16
        observation = Observation(
            image=np.full((8, 8, 3), value, np.uint8),
            K=np.eye(3),
            world_from_camera=np.eye(4),
            time=0.0,
            depth=np.ones((8, 8), np.float32) if depth else None,
        )
        request = ImagineRequest(
            request_id=name,
            world_from_camera=np.tile(np.eye(4), (padded, 1, 1)),
            times=np.arange(padded) / 8,
            memory=name,
            steps=steps,
        )
        chunks = self.chunks[name] = []
        how.setdefault('on_answer', chunks.append)
        how |= {'kind': 'topic' if replaceable else 'goal', 'replaces': replaceable}
        return Job(
            request=request,
            observations=(observation,),
            wanted=(frames,),
            on_end=self._ended,
            **how,
        )

    def submit(self, *arguments, **keywords) -> Job:
        job = self.job(*arguments, **keywords)
        self.worker.submit(job)
        return job

    def _ended(self, outcome: Outcome) -> None:
        with self._changed:
            self.outcomes.setdefault(outcome.request_id, []).append(outcome)
            self._changed.notify_all()

    def outcome(self, name: str) -> Outcome:
        with self._changed:
            assert self._changed.wait_for(lambda: name in self.outcomes, timeout=10), name
        (outcome,) = self.outcomes[name]
        return outcome


@pytest.fixture
def engine() -> InstantEngine:
    return InstantEngine(height=8, width=8, step_seconds=0.02)


@pytest.fixture
def queue_size() -> int:
    return 8


@pytest.fixture
def requests(engine, queue_size) -> Iterator[JobRecorder]:
    requests = JobRecorder(engine, queue_size)
    yield requests
    requests.worker.close()


def test_memory_of_a_job_observes_all_its_images(requests, engine):
    """The first image creates the memory, the others are written into it, and paths start from the
    last."""
    written = []
    seed, observe = engine.seed, engine.observe

    def logged_seed(observation, *, memory):
        written.append(('seed', int(observation.image.max())))
        return seed(observation, memory=memory)

    def logged_observe(observation, *, memory):
        written.append(('observe', int(observation.image.max())))
        return observe(observation, memory=memory)

    engine.seed, engine.observe = logged_seed, logged_observe
    (first,) = requests.job('a', value=10).observations
    (second,) = requests.job('a', value=20).observations
    requests.worker.submit(replace(requests.job('a', value=30), observations=(first, second)))
    assert requests.outcome('a').status == 'done'
    assert written[0] == ('seed', 10) and written[-1][1] == 20
    assert requests.chunks['a'][0].frames[0].max() == 21 and not engine.memories


def test_padding_is_not_returned(requests, engine):
    requests.submit('a', frames=20)
    outcome = requests.outcome('a')
    assert (outcome.status, outcome.chunks, outcome.frames) == ('done', 2, 20)
    assert (outcome.visible_mean, outcome.observed_mean, outcome.depth_source) == (
        0.75,
        0.5,
        'sensor',
    )
    first, second = requests.chunks['a']
    for name in ('frames', 'visibility', 'visible', 'observed', 'K', 'world_from_camera', 'times'):
        assert len(getattr(first, name)) == 16 and len(getattr(second, name)) == 4, name
    assert engine.memories == {}


def test_cancel_running_and_waiting(requests, engine):
    running = requests.submit('running', steps=1000)
    waiting = requests.submit('waiting')
    time.sleep(0.1)
    requests.worker.cancel(waiting)
    requests.worker.cancel(running)
    asked = time.monotonic()
    assert requests.outcome('waiting').status == requests.outcome('running').status == 'cancelled'
    assert time.monotonic() - asked < 0.5
    requests.worker.cancel(running)
    requests.submit('next')
    assert requests.outcome('next').status == 'done'
    assert engine.memories == {}


def test_newer_job_replaces_older_of_its_kind(requests):
    requests.submit('old', steps=1000, replaceable=True)
    requests.submit('stays')
    time.sleep(0.1)
    requests.submit('new', replaceable=True)
    old = requests.outcome('old')
    assert old.status == 'cancelled' and old.reason == "replaced by the newer request 'new'"
    assert requests.outcome('stays').status == requests.outcome('new').status == 'done'


@pytest.mark.parametrize('queue_size', [1])
def test_job_without_room_replaces_nothing(requests):
    requests.submit('running', steps=10, replaceable=True)
    time.sleep(0.1)
    requests.submit('waits')
    requests.submit('newer', replaceable=True)
    assert (
        requests.outcome('newer').reason
        == 'the queue is full: 1 requests of this client and 1 in total wait'
    )
    assert requests.outcome('running').status == requests.outcome('waits').status == 'done'


def test_job_replaces_waiting_jobs_with_its_id(requests):
    requests.submit('goal', steps=1000)
    time.sleep(0.1)
    for _ in range(2):
        requests.submit('again', replaceable=True)
    requests.worker.submit(requests.job('goal', replaceable=True))
    assert (
        requests.outcome('goal').reason
        == "request_id: 'goal' is in use by a request that runs or waits"
    )
    requests.worker.close()
    assert [outcome.reason for outcome in requests.outcomes['again']] == [
        "replaced by the newer request 'again'",
        'the node is shutting down',
    ]


def test_job_replaces_the_running_job_with_its_id(requests):
    requests.submit('again', steps=1000, replaceable=True)
    time.sleep(0.1)
    requests.submit('next', steps=1)
    requests.worker.submit(requests.job('again', steps=1, replaceable=True))
    requests.submit('last', steps=1)
    assert requests.outcome('last').status == 'done'
    assert [outcome.status for outcome in requests.outcomes['again']] == ['cancelled', 'done']


def test_full_queue_and_duplicate_ids_are_dropped(engine):
    requests = JobRecorder(engine, queue_size=1)
    first = requests.submit('first', steps=1000)
    time.sleep(0.1)
    requests.submit('second')
    requests.submit('third')
    assert (
        requests.outcome('third').reason
        == 'the queue is full: 1 requests of this client and 1 in total wait'
    )
    requests.worker.submit(requests.job('first'))
    assert (
        requests.outcome('first').reason
        == "request_id: 'first' is in use by a request that runs or waits"
    )
    requests.worker.cancel(first)
    assert requests.outcome('second').status == 'done'
    requests.worker.close()


def test_errors_end_their_job_alone(requests):
    requests.submit('breaks', value=13)
    requests.submit('unscaled', depth=False)

    def too_large(chunk):
        raise ValueError('the chunk is too large')

    requests.submit('unpublished', on_answer=too_large)
    assert requests.outcome('breaks').reason == 'RuntimeError: this image breaks the engine'
    assert requests.outcome('breaks').status == 'failed'
    assert requests.outcome('unscaled').status == 'rejected'
    assert requests.outcome('unpublished').reason == 'ValueError: the chunk is too large'
    assert 'Traceback' in requests.outcome('breaks').details
    assert requests.outcome('unscaled').details == ''


def test_close_answers_everything(engine):
    requests = JobRecorder(engine)
    for name in 'abc':
        requests.submit(name, steps=1000)
    time.sleep(0.1)
    requests.worker.close()
    requests.submit('late')
    assert {name: requests.outcome(name).status for name in ('a', 'b', 'c', 'late')} == {
        'a': 'cancelled',
        'b': 'dropped',
        'c': 'dropped',
        'late': 'dropped',
    }


def test_many_threads_and_every_job_ends_once(engine):
    requests = JobRecorder(InstantEngine(height=8, width=8, step_seconds=0.001), queue_size=3)

    def client(name: str) -> None:
        rng = random.Random(name)
        for i in range(40):
            job = requests.submit(
                f'{name}{i}', replaceable=rng.random() < 0.3, value=rng.choice([13, 50])
            )
            if rng.random() < 0.3:
                requests.worker.cancel(job)
            time.sleep(rng.random() * 0.005)

    threads = [threading.Thread(target=client, args=(name,)) for name in 'xyz']
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    requests.worker.close()
    assert len(requests.outcomes) == 120
    assert all(len(outcomes) == 1 for outcomes in requests.outcomes.values())
    assert {outcomes[0].status for outcomes in requests.outcomes.values()} >= {
        'done',
        'failed',
        'dropped',
    }


def test_clients_take_turns(engine):
    """A client that fills its queue is served in turn with the others, in its own order."""
    ended: list[str] = []
    requests = JobRecorder(engine)
    requests.submit('first', steps=20, client='a', on_answer=lambda chunk: ended.append('first'))
    time.sleep(0.1)
    for client, count in (('a', 4), ('b', 2), ('c', 1)):
        for i in range(count):
            name = f'{client}{i}'
            requests.submit(
                name, client=client, on_answer=lambda chunk, name=name: ended.append(name)
            )
    assert requests.outcome('a3').status == 'done'
    assert ended == ['first', 'b0', 'c0', 'a0', 'b1', 'a1', 'a2', 'a3']
    requests.worker.close()


def test_new_clients_do_not_starve_others():
    requests = JobRecorder(InstantEngine(height=8, width=8, step_seconds=0.001), queue_size=1)
    ended: list[str] = []

    def next_stranger(number: int) -> None:
        """Submit a job of one more client whenever one is served."""
        if number < 60 and 'again' not in ended:
            requests.submit(
                f's{number}', client=f's{number}', on_answer=lambda c: next_stranger(number + 1)
            )

    first = requests.submit('first', steps=100, client='known')
    time.sleep(0.02)
    requests.submit('again', client='known', on_answer=lambda chunk: ended.append('again'))
    next_stranger(0)
    requests.worker.cancel(first)
    assert requests.outcome('again').status == 'done'
    assert len(requests.outcomes) < 30
    assert len(requests.worker._next_turn) <= 3
    requests.worker.close()


def test_calls_are_answered_between_two_steps(requests):
    """Calls are answered while a job runs; an error ends its call alone, and closing answers the
    rest."""
    requests.submit('long', steps=1000)
    asked = time.monotonic()
    assert requests.worker.call(lambda engine: engine.describe().model).result() == 'instant'
    with pytest.raises(ZeroDivisionError):
        requests.worker.call(lambda engine: 1 / 0).result()
    assert time.monotonic() - asked < 0.5
    assert not requests.outcomes
    requests.worker.close()
    with pytest.raises(ValueError, match='shutting down'):
        requests.worker.call(lambda engine: None).result()


def test_interrupt_cancels_only_a_matching_request(requests):
    requests.submit('meant', steps=1000)
    requests.submit('waits')
    time.sleep(0.1)
    for name in ('waits', 'meant'):
        requests.worker.interrupt(lambda request: request.request_id == name, f'{name} is over')
    outcome = requests.outcome('meant')
    assert (outcome.status, outcome.reason) == ('cancelled', 'meant is over')
    assert requests.outcome('waits').status == 'done'


def candidates(requests: JobRecorder, name: str, *, steps: int, **how) -> Job:
    job = requests.job(name, frames=20)
    path = Trajectory(world_from_camera=job.request.world_from_camera, times=job.request.times)
    request = CandidatesRequest(
        request_id=name, trajectories=(path,) * 3, seeds=(1, 2, 3), memory=name, steps=steps
    )
    return replace(job, request=request, wanted=(20, 16, 3), **how)


def test_candidates_come_in_order_without_padding(requests, engine):
    requests.worker.submit(candidates(requests, 'all', steps=1))
    outcome = requests.outcome('all')
    assert (outcome.status, outcome.frames) == ('done', 39)
    made = requests.chunks['all']
    assert [candidate.index for candidate in made] == [0, 1, 2]
    assert [[len(c.frames) for c in candidate.chunks] for candidate in made] == [
        [16, 4],
        [16],
        [3],
    ]
    assert [candidate.chunks[0].seed for candidate in made] == [1, 2, 3]
    requests.worker.submit(candidates(requests, 'last', steps=1, last_frame_only=True))
    requests.outcome('last')
    ends = [candidate.chunks[0].times for candidate in requests.chunks['last']]
    np.testing.assert_allclose(ends, [[19 / 8], [15 / 8], [2 / 8]])
    assert engine.memories == {}


def test_a_deadline_counts_from_the_submission(requests):
    """The deadline includes waiting; chunks that exist by then are returned and marked."""
    job = candidates(requests, 'late', steps=1000, due=time.monotonic() + 0.2)
    requests.worker.submit(job)
    outcome = requests.outcome('late')
    assert outcome.reason == '3 candidates are incomplete at the deadline'
    assert [candidate.complete for candidate in requests.chunks['late']] == [False] * 3


def test_deadline_ends_a_waiting_job(requests):
    """The running job goes on, and the overdue one never starts."""
    running = requests.submit('running', steps=1000)
    requests.worker.submit(candidates(requests, 'late', steps=1, due=time.monotonic() + 0.1))
    outcome = requests.outcome('late')
    assert (outcome.status, outcome.reason) == ('cancelled', 'the deadline passed while it waited')
    assert not requests.chunks['late'] and 'running' not in requests.outcomes
    requests.worker.cancel(running)
    assert requests.outcome('running').status == 'cancelled'
