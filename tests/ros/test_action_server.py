"""Goals become jobs in the order of acceptance, and each ends with one result."""

from __future__ import annotations

from collections.abc import Iterator
import threading

from action_msgs.msg import GoalStatus
from instant_engine import InstantEngine
from mirage.action import Imagine
from processes import Client, seed_messages, trajectory
import pytest
from rclpy.executors import MultiThreadedExecutor

from mirage_ros.node import EXECUTOR_THREADS, MirageNode
from mirage_ros.tools.fake_robot import Goal

GOALS = 12  # the default of max_goals, more than the threads of the executor


@pytest.fixture
def node(ros) -> Iterator[MirageNode]:
    """Return a node in this process whose engine takes a second for each chunk of four steps."""
    node = MirageNode(lambda parameters: InstantEngine(step_seconds=0.25))
    executor = MultiThreadedExecutor(num_threads=EXECUTOR_THREADS)
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin)
    spinning.start()
    assert node.start()
    yield node
    node.close()
    executor.shutdown()
    spinning.join()
    node.destroy_node()


def goal(request_id: str, *, steps: int = 1, **keywords) -> Imagine.Goal:
    image, camera_info, depth = seed_messages()
    path = trajectory(16, request_id=request_id)
    path.camera_info = [camera_info]
    path.client = keywords.pop('client', '') or request_id
    return Imagine.Goal(
        trajectory=path, seed_image=[image], seed_depth=[depth], steps=steps, **keywords
    )


def test_goals_are_served_in_order_without_threads(client: Client, node: MirageNode):
    """Send one goal more than ``limits.max_goals``."""
    client.until(client.action.server_is_ready)
    names = [f'goal {number}' for number in range(GOALS + 1)]
    # the first goal runs until it is cancelled
    goals = [goal(name, steps=1 if number else 1000) for number, name in enumerate(names)]
    sent = [client.action.send_goal_async(each) for each in goals]
    client.until(lambda: all(future.done() for future in sent))
    handles = [future.result() for future in sent]
    assert [handle.accepted for handle in handles] == [True] * GOALS + [False]
    # no coroutine waits for a goal, which the executor would poll without pause
    assert all(entity is not None for _, entity, _ in list(node.executor._tasks))
    handles[0].cancel_goal_async()
    results = [handle.get_result_async() for handle in handles[:-1]]
    client.until(lambda: all(future.done() for future in results))
    assert [future.result().status for future in results] == [
        GoalStatus.STATUS_CANCELED,
        *[GoalStatus.STATUS_SUCCEEDED] * (GOALS - 1),
    ]
    client.until(lambda: len(client.chunks) == GOALS - 1)
    assert [chunk.request_id for chunk in client.chunks] == names[1:-1]
    assert Goal(client, goal('afterwards')).result()[0] == GoalStatus.STATUS_SUCCEEDED


def test_cancelled_goals_end_as_cancelled(client: Client, node: MirageNode):
    """Waiting goals end as cancelled too, though their jobs end before their state has changed."""
    client.until(client.action.server_is_ready)
    goals = [Goal(client, goal(f'goal {number}', steps=1000)) for number in range(6)]
    for sent in reversed(goals):
        sent.cancel()
        status, result = sent.result()
        assert status == GoalStatus.STATUS_CANCELED
        assert result.message == 'cancelled: cancelled by the client'


def test_a_goal_may_cancel_twice_or_too_late(client: Client, node: MirageNode):
    client.until(client.action.server_is_ready)
    sent = Goal(client, goal('done'))
    assert sent.result()[0] == GoalStatus.STATUS_SUCCEEDED
    sent.cancel()
    assert sent.result()[0] == GoalStatus.STATUS_SUCCEEDED
    assert Goal(client, goal('next')).result()[0] == GoalStatus.STATUS_SUCCEEDED


def test_deactivation_answers_every_goal(client: Client, node: MirageNode):
    client.until(client.action.server_is_ready)
    goals = [Goal(client, goal(f'goal {number}', steps=1000)) for number in range(3)]
    node.trigger_deactivate()
    for sent in goals:
        status, result = sent.result()
        assert status == GoalStatus.STATUS_ABORTED
        # a goal that was accepted but not submitted yet is rejected
        reasons = ('the node was deactivated', 'node: not active')
        assert result.message.endswith(reasons), result.message
    status, result = Goal(client, goal('inactive')).result()
    assert status == GoalStatus.STATUS_ABORTED and 'node: not active' in result.message
    node.trigger_activate()
    assert Goal(client, goal('active')).result()[0] == GoalStatus.STATUS_SUCCEEDED


def test_vanished_clients_take_no_room(client: Client, node: MirageNode):
    """rclpy accepts their goals, cannot answer, and skips the callback that submits them."""
    client.until(client.action.server_is_ready)
    server = node._actions[0]
    accepted = server._handle_accepted_callback
    server.register_handle_accepted_callback(lambda handle: None)
    for number in range(GOALS):
        assert Goal(client, goal(f'vanishes {number}')).handle.accepted
    server.register_handle_accepted_callback(accepted)
    assert Goal(client, goal('stays')).result()[0] == GoalStatus.STATUS_SUCCEEDED
