"""Goals of the actions as jobs of the worker: accepted, cancelled and finished in one callback
group."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
import queue
import threading
import traceback
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import GoalEvent, ServerGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import QoSProfile

from mirage_model.engine.worker import Job, Outcome
from mirage_ros.context import NodeContext
from mirage_ros.publishers import Publishers

SERVICE_QOS = QoSProfile(depth=256)
"""Requests of goals, cancels and results that may arrive at once; rclpy keeps 10, and DDS drops
the others."""

Finish = Callable[[Outcome, Any], None]
"""Called once with the outcome and the result message of a goal, from any thread."""


class Goals:
    """The goals that run or wait, over all actions of the node.

    Acceptance, cancellation and the end of a goal share one mutually exclusive callback group.
    Jobs are therefore submitted in the order of acceptance, and no goal ends between its cancel
    request and the change of its state.
    """

    def __init__(self, node: NodeContext, publishers: Publishers):
        self._node = node
        self._publishers = publishers
        self._group = MutuallyExclusiveCallbackGroup()
        self._cancel: dict[bytes, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._ended: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = node.create_guard_condition(self._finish_ended, callback_group=self._group)

    def serve(
        self,
        kind: type,
        name: str,
        *,
        requested_id: Callable[[Any], str],
        make_job: Callable[[ServerGoalHandle, str, Finish], Job],
        make_result: Callable[[Outcome], Any],
    ) -> ActionServer:
        """Return an action server whose goals become jobs.

        Args:
            requested_id: Returns the request id that a goal carries, or ''.
            make_job: Takes the goal's handle, its request id, and the function that finishes the
                goal. A ValueError rejects the goal.
            make_result: Returns the result message of a goal for which there is no job.
        """

        def on_accepted(handle: ServerGoalHandle) -> None:
            goal_id = bytes(handle.goal_id.uuid)
            request_id = requested_id(handle.request) or f'goal-{goal_id.hex()[:12]}'

            def finish(outcome: Outcome, result: Any) -> None:
                self._publishers.log(outcome)
                execute = partial(self._execute, outcome=outcome, result=result)
                self._ended.put(lambda: server.notify_execute(handle, execute))
                self._wake.trigger()

            with self._changed:
                self._cancel[goal_id] = lambda: None
            # handle.execute() would also start the execute callback, and rclpy's executor polls a
            # waiting coroutine
            # without pause; the callback is started when the job has ended
            handle._update_state(GoalEvent.EXECUTE)
            try:
                worker = self._node.worker
                with self._node.metrics.timing('convert'):
                    job = make_job(handle, request_id, finish)
                self._cancel[goal_id] = lambda: worker.cancel(job)
                worker.submit(job)
            except ValueError as error:
                outcome = Outcome(request_id=request_id, status='rejected', reason=str(error))
                finish(outcome, make_result(outcome))
            except Exception as error:
                outcome = Outcome(
                    request_id=request_id,
                    status='failed',
                    reason=f'{type(error).__name__}: {error}',
                    details=traceback.format_exc(),
                )
                finish(outcome, make_result(outcome))

        server = ActionServer(
            self._node,
            kind,
            name,
            self._execute,
            goal_callback=lambda goal: self._on_goal(name),
            handle_accepted_callback=on_accepted,
            cancel_callback=self._on_cancel,
            callback_group=self._group,
            goal_service_qos_profile=SERVICE_QOS,
            cancel_service_qos_profile=SERVICE_QOS,
            result_service_qos_profile=SERVICE_QOS,
            result_timeout=round(self._node.parameters.request.result_timeout),
        )
        return server

    def wait_for_all(self, seconds: float) -> None:
        """Wait until all goals have their results, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._cancel, timeout=seconds)

    def _on_goal(self, name: str) -> GoalResponse:
        # a client that vanishes before it hears of its acceptance takes no room: rclpy skips
        # on_accepted then
        most = self._node.parameters.limits.max_goals
        if len(self._cancel) < most:
            return GoalResponse.ACCEPT
        self._node.metrics.count('requests dropped')
        self._node.log_error(f'goal of {name} dropped: {most} goals are being served')
        return GoalResponse.REJECT

    def _on_cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        if cancel := self._cancel.get(bytes(handle.goal_id.uuid)):
            cancel()
        return CancelResponse.ACCEPT

    def _finish_ended(self) -> None:
        while not self._ended.empty():
            self._ended.get()()

    def _execute(self, handle: ServerGoalHandle, *, outcome: Outcome, result: Any) -> Any:
        if outcome.status == 'done':
            handle.succeed()
        elif outcome.status == 'cancelled' and handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        with self._changed:
            del self._cancel[bytes(handle.goal_id.uuid)]
            self._changed.notify_all()
        return result


def message_of(outcome: Outcome) -> str:
    return f'{outcome.status}: {outcome.reason}' if outcome.reason else ''
