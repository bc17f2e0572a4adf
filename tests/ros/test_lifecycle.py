"""Lifecycle transitions succeed, are rejected or fail as they should."""

from __future__ import annotations

from instant_engine import InstantEngine
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from processes import trajectory
from rclpy.lifecycle import TransitionCallbackReturn

from mirage_ros.node import MirageNode


def test_transitions(client, start_node):
    node = start_node(autostart=False, ready='waits to be configured')

    def change(transition: int) -> bool:
        request = ChangeState.Request(transition=Transition(id=transition))
        return client.call(ChangeState, 'mirage/change_state', request).success

    def state() -> int:
        return client.call(GetState, 'mirage/get_state').current_state.id

    client.connect()
    client.send_seed()
    assert not change(Transition.TRANSITION_ACTIVATE)
    node.wait_for("rejected in state 'unconfigured'")
    assert state() == State.PRIMARY_STATE_UNCONFIGURED
    assert change(Transition.TRANSITION_CONFIGURE)
    client.send('trajectory', trajectory(16, request_id='too early'))
    node.wait_for("request 'too early' rejected: node: not active")
    for _ in range(2):
        assert change(Transition.TRANSITION_ACTIVATE)
        assert state() == State.PRIMARY_STATE_ACTIVE
        assert not change(Transition.TRANSITION_CLEANUP)
        client.chunks.clear()
        client.send('trajectory', trajectory(16))
        client.until(lambda: client.chunks)
        assert change(Transition.TRANSITION_DEACTIVATE)
        assert not change(99)
    assert change(Transition.TRANSITION_CLEANUP)
    assert state() == State.PRIMARY_STATE_UNCONFIGURED
    assert change(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
    assert state() == State.PRIMARY_STATE_FINALIZED


def test_failed_transitions_can_be_repeated(ros):
    """A model that cannot be loaded leaves the node unconfigured, and so does what nobody
    expected."""
    engines = [OSError('the folder is gone'), KeyError('never thought of'), InstantEngine()]

    def load(parameters) -> InstantEngine:
        engine = engines.pop(0)
        if isinstance(engine, Exception):
            raise engine
        return engine

    node = MirageNode(load)
    engine = engines[-1]
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert node.trigger_configure() == TransitionCallbackReturn.ERROR
    assert node.start()
    assert engine.warmed == 1
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert engine.released == 1 and not node.is_active
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    assert engine.warmed == 2 and node.is_active
    node.close()
    node.destroy_node()
