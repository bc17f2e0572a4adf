"""What the two actions share: a goal is accepted, waited for, cancelled, and answered once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
import queue
import threading
import time
import traceback
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup

from mirage_ros.answers import Answers
from mirage_ros.host import Host
from mirage_ros.worker import Job, Outcome

CANCEL_POLL = 0.02  # seconds


class Goals:
    """How many may be served or wait at once, over all actions of the node, and in which order they came.

    Each is made into a job in a thread of its own, so that a newer one may overtake an older one there.
    """

    def __init__(self, most: int):
        self.most = most
        self._left = threading.Semaphore(most)
        self._lock = threading.Lock()
        self._count = 0
        self._accepted: deque[tuple[int, Any]] = deque(maxlen=most)

    def take(self, goal: Any) -> bool:
        if not self._left.acquire(blocking=False):
            return False
        with self._lock:
            self._count += 1
            self._accepted.append((self._count, goal))
        return True

    def order(self, goal: Any) -> int:
        """The how-manieth goal this very message was; asked once."""
        with self._lock:
            (order,) = (n for n, other in self._accepted if other is goal)
            others = [pair for pair in self._accepted if pair[1] is not goal]
            self._accepted = deque(others, maxlen=self.most)
        return order

    def give_back(self) -> None:
        self._left.release()

    def wait_for_all(self, seconds: float) -> None:
        """Wait until every goal has its answer, so long for each."""
        for _ in range(self.most):
            self._left.acquire(timeout=seconds)


def serve(
    node: Host,
    answers: Answers,
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
            order = goals.order(handle.request)
            made, outcome = _outcome(node, handle, request_id, order, job)
            answers.log(outcome)
            if outcome.status == 'done':
                handle.succeed()
            elif outcome.status == 'cancelled' and handle.is_cancel_requested:
                handle.canceled()
            else:
                handle.abort()
            return result(outcome, made)
        finally:
            goals.give_back()

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
    node: Host, handle: ServerGoalHandle, request_id: str, order: int, make: Callable
) -> tuple[Job | None, Outcome]:
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    try:
        worker = node.worker
        with node.figures.timing('convert'):
            job = replace(make(handle, request_id, outcomes.put), order=order)
    except ValueError as error:
        return None, Outcome(request_id=request_id, status='refused', reason=str(error))
    except Exception as error:
        return None, Outcome(
            request_id=request_id,
            status='failed',
            reason=f'{type(error).__name__}: {error}',
            details=traceback.format_exc(),
        )
    worker.submit(job)
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
