"""Faults end only their request; a killed node restarts from the saved memory."""

from __future__ import annotations

from collections.abc import Callable

from action_msgs.msg import GoalStatus
from faulty_engine import OUT_OF_MEMORY, UNSEEN
from mirage.action import Imagine
from mirage.srv import MemoryFile
from nav_msgs.msg import Odometry
from processes import NodeProcess, seed_messages, trajectory
import pytest

from mirage_ros.convert import stamp


@pytest.fixture
def start_faulty(tmp_path):
    """Start nodes; those that still run when the test ends are stopped, and must end well."""
    nodes: list[NodeProcess] = []

    def start(**parameters) -> NodeProcess:
        log = tmp_path / f'node-{len(nodes)}.log'
        nodes.append(NodeProcess(log, engine='faulty_engine', **parameters))
        return nodes[-1]

    yield start
    for node in nodes:
        if node.process.poll() is None:
            node.stop()


def test_faults_and_a_killed_node(client, start_faulty, tmp_path):
    parameters = {
        'observe__pose_source': 'odometry',
        'observe__rate': 20.0,
        'frames__base_from_camera': '[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]',
        'memory__folder': f"'{tmp_path}'",
    }
    node = start_faulty(**parameters)
    client.publisher('odometry', Odometry)
    client.connect()

    def drive(second: int, value: int) -> None:
        odometry = Odometry(child_frame_id='base_link')
        odometry.header.frame_id, odometry.header.stamp = 'map', stamp(float(second))
        odometry.pose.pose.position.x = float(second)
        client.send('odometry', odometry)
        for name, message in zip(
            ('image', 'camera_info', 'depth'), seed_messages(stamp=second, value=value)
        ):
            client.send(name, message)

    def drive_until(second: int, value: int, done: Callable[[], bool]) -> None:
        """Send the same second again while the node drops its image as incomplete."""

        def sent_and_done() -> bool:
            drive(second, value)
            client.spin(0.2)
            return done()

        client.until(sent_and_done)

    def imagine(**goal):
        sent = client.goal(Imagine.Goal(trajectory=trajectory(31), **goal))
        return sent.result()

    def file(service: str, name: str) -> MemoryFile.Response:
        return client.call(MemoryFile, service, MemoryFile.Request(file=name))

    failed = 'observation failed: RuntimeError: the depth estimator failed'
    drive_until(1, UNSEEN, lambda: failed in node.says())
    node.wait_for('Traceback')
    drive_until(2, 70, lambda: file('save_memory', 'good').success)
    status, result = imagine(seed=OUT_OF_MEMORY)
    assert status == GoalStatus.STATUS_ABORTED and result.chunks == 1
    assert result.message == 'failed: MemoryError: injected'
    full = file('save_memory', 'full')
    assert not full.success and 'No space left on device' in full.message
    status, result = imagine()
    assert status == GoalStatus.STATUS_SUCCEEDED and result.chunks == 2
    client.until(lambda: len(client.chunks) == 3)
    before = client.chunks[-1]

    node.process.kill()
    node.process.wait()
    start_faulty(**parameters)
    client.connect()
    client.chunks.clear()
    assert file('load_memory', 'good').success

    def answers_once_the_camera_is_heard() -> bool:
        client.send('camera_info', seed_messages(stamp=3)[1])
        return imagine()[0] == GoalStatus.STATUS_SUCCEEDED

    client.until(answers_once_the_camera_is_heard)
    client.until(lambda: len(client.chunks) == 2)
    assert client.chunks[-1].frames == before.frames
