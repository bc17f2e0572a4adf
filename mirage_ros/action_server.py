"""What the two actions share: a goal is accepted, waited for, cancelled, and answered once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import queue
import threading
import time
import traceback
from typing import Any, Literal

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup

from mirage_model.engine.worker import Job, Outcome
from mirage_ros.context import NodeContext
from mirage_ros.publishers import Publishers

CANCEL_POLL = 0.02  # seconds
TURN = 1.0  # seconds


@dataclass(eq=False)
class _Accepted:
    goal: Any
    state: Literal['accepted', 'arrived', 'done'] = 'accepted'


class Goals:
    """How many may be served or wait at once, over all actions of the node, and in which order they came.

    A goal is known by its message itself.
    """

    def __init__(self, most: int):
        self.most = most
        self._left = threading.Semaphore(most)
        self._turn = threading.Condition()
        self._accepted: list[_Accepted] = []

    def take(self, goal: Any) -> bool:
        """Whether there is room for a goal, which then has its turn after those before it."""
        room = self._left.acquire(blocking=False)
        if room:
            with self._turn:
                self._accepted.append(_Accepted(goal))
        return room

    @contextmanager
    def turn(self, goal: Any) -> Iterator[None]:
        """Wait until the goals before have had their turn: each has a thread of its own, and may be overtaken there.

        One that has not come to its turn in `TURN` seconds is given up and its room given back: its client went away
        before it could be told that the goal was accepted.
        """
        with self._turn:
            own = self._of(goal)
            if own is not None:
                own.state = 'arrived'
                self._turn.notify_all()
            while own is not None and (before := self._first()) is not own:
                state = before.state
                limit = TURN if state == 'accepted' else None
                if not self._turn.wait_for(lambda b=before, s=state: b.state != s, timeout=limit):
                    self._give_back(before)
        try:
            yield
        finally:
            with self._turn:
                if own is not None:
                    own.state = 'done'
                self._turn.notify_all()

    def give_back(self, goal: Any) -> None:
        with self._turn:
            own = self._of(goal)
            if own is not None:
                self._give_back(own)

    def _give_back(self, accepted: _Accepted) -> None:
        accepted.state = 'done'
        self._accepted.remove(accepted)
        self._left.release()
        self._turn.notify_all()

    def _of(self, goal: Any) -> _Accepted | None:
        return next((one for one in self._accepted if one.goal is goal), None)

    def _first(self) -> _Accepted | None:
        """Of those that have not had their turn."""
        return next((one for one in self._accepted if one.state != 'done'), None)

    def wait_for_all(self, seconds: float) -> None:
        """Wait until every goal has its answer, so long for each."""
        for _ in range(self.most):
            self._left.acquire(timeout=seconds)


def serve(
    node: NodeContext,
    answers: Publishers,
    goals: Goals,
    kind: type,
    name: str,
    *,
    asked_id: Callable[[Any], str],
    job: Callable[[ServerGoalHandle, str, Callable[[Outcome], None]], Job],
    result: Callable[[Outcome, Any], Any],
) -> ActionServer:
    """An action server whose goals become jobs.

    ``asked_id`` is the request id of a goal, or nothing. ``job`` is given the handle, the id, and what to call at the
    end; its ValueError refuses the goal. ``result`` makes the answer of the outcome and of the job, None where there was none.
    """

    def on_goal(goal: Any) -> GoalResponse:
        if goals.take(goal):
            return GoalResponse.ACCEPT
        node.figures.count('requests dropped')
        node.complain(f'goal of {name} dropped: {goals.most} goals are being served')
        return GoalResponse.REJECT

    def on_execute(handle: ServerGoalHandle) -> Any:
        """Wait for the worker; every goal runs this in a thread of its own."""
        try:
            request_id = (
                asked_id(handle.request) or f'goal-{bytes(handle.goal_id.uuid).hex()[:12]}'
            )
            made, outcome = _outcome(node, goals, handle, request_id, job)
            answers.log(outcome)
            if outcome.status == 'done':
                handle.succeed()
            elif outcome.status == 'cancelled' and handle.is_cancel_requested:
                handle.canceled()
            else:
                handle.abort()
            return result(outcome, made)
        finally:
            goals.give_back(handle.request)

    return ActionServer(
        node,
        kind,
        name,
        on_execute,
        goal_callback=on_goal,
        cancel_callback=lambda goal: CancelResponse.ACCEPT,
        callback_group=ReentrantCallbackGroup(),
        result_timeout=round(node.settings.result_seconds),
    )


def _outcome(
    node: NodeContext, goals: Goals, handle: ServerGoalHandle, request_id: str, make: Callable
) -> tuple[Job | None, Outcome]:
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    try:
        with goals.turn(handle.request):
            worker = node.worker
            with node.figures.timing('convert'):
                job = make(handle, request_id, outcomes.put)
            worker.submit(job)
    except ValueError as error:
        return None, Outcome(request_id=request_id, status='refused', reason=str(error))
    except Exception as error:
        return None, Outcome(
            request_id=request_id,
            status='failed',
            reason=f'{type(error).__name__}: {error}',
            details=traceback.format_exc(),
        )
    while True:
        try:
            return job, outcomes.get(timeout=CANCEL_POLL)
        except queue.Empty:
            if handle.is_cancel_requested:
                worker.cancel(job)
            elif job.due is not None and time.monotonic() > job.due:
                worker.cancel(job, 'the deadline passed while it waited', running=False)


def message_of(outcome: Outcome) -> str:
    return f'{outcome.status}: {outcome.reason}' if outcome.reason else ''
