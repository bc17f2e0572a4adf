"""A node whose engine is on a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import subprocess
import sys

from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticArray
from mirage.action import Imagine
from mirage.srv import MemoryFile
from nav_msgs.msg import Odometry
from processes import seed_messages, trajectory
import pytest

from mirage_ros.convert import stamp

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'serving'))
from servers import WITHOUT_ENGINE, ServerProcess  # noqa: E402

NODE = [sys.executable, '-c']
ROBOT = f"""{WITHOUT_ENGINE}
from mirage_ros.node import main
sys.exit(main())
"""
"""A node where the packages of the engine are not installed."""


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    server = ServerProcess(step_seconds=0.01)
    yield server
    server.close()


def test_node_with_a_remote_engine_survives_its_server(client, start_node, server):
    """The node runs without torch; a killed server gets the driven memory again."""
    node = start_node(
        program=[*NODE, ROBOT],
        engine__address=f'grpc://127.0.0.1:{server.port}',
        engine__timeout=1.0,
        engine__images='png',
        observe__pose_source='odometry',
        observe__rate=20.0,
        frames__base_from_camera='[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]',
        diagnostics__period=0.2,
    )
    assert f'on grpc://127.0.0.1:{server.port}' in node.says()
    client.publisher('odometry', Odometry)
    client.receive('/diagnostics', DiagnosticArray)
    client.connect()

    def link() -> dict[str, str]:
        for message in reversed(client.received['/diagnostics']):
            for status in message.status:
                if status.name.endswith(': imagination'):
                    values = {value.key: value.value for value in status.values}
                    return {**values, 'message': status.message}
        return {}

    def drive() -> None:
        odometry = Odometry(child_frame_id='base_link')
        odometry.header.frame_id, odometry.header.stamp = 'map', stamp(2.0)
        client.send('odometry', odometry)
        messages = zip(('image', 'camera_info', 'depth'), seed_messages(stamp=2, value=70))
        for name, message in messages:
            client.send(name, message)

    def observed() -> bool:
        drive()
        client.spin(0.2)
        return int(link().get('images observed', 0)) > 0

    client.until(observed)

    def imagine() -> tuple[int, str]:
        status, result = client.goal(Imagine.Goal(trajectory=trajectory(31))).result()
        return status, result.message

    assert imagine() == (GoalStatus.STATUS_SUCCEEDED, '')
    client.until(lambda: len(client.chunks) == 2)
    before = client.chunks[-1].frames
    client.until(lambda: 'chunk network median s' in link())
    assert {'chunk queue median s', 'chunk unpack median s'} <= set(link())
    assert link()['link connected'] == 'True' and link()['link observations kept'] == '1'
    saved = client.call(MemoryFile, 'save_memory', MemoryFile.Request(file='full'))
    assert not saved.success and 'No space left on device' in saved.message

    server.kill()
    client.until(lambda: 'no link to the engine' in link()['message'])
    status, message = imagine()
    assert status == GoalStatus.STATUS_ABORTED and 'EngineUnavailable' in message
    server.start()
    client.until(lambda: imagine()[0] == GoalStatus.STATUS_SUCCEEDED)
    client.until(lambda: 'were sent again' in link()['message'])
    assert link()['link sessions lost'] == '1'
    client.until(lambda: client.chunks[-1].index == 1)
    assert client.chunks[-1].frames == before


def test_node_without_engine_names_the_extra():
    run = subprocess.run([*NODE, ROBOT], capture_output=True, text=True)
    assert run.returncode == 1
    assert "pip install 'mirage[engine]'" in run.stdout + run.stderr


def test_node_says_why_it_cannot_connect():
    program = [sys.executable, '-m', 'mirage_ros', '--ros-args']
    for address, reason in (
        ('grpc://192.0.2.1:50051', 'plain text'),
        ('grpc://127.0.0.1:9', 'engine grpc://127.0.0.1:9'),
    ):
        run = subprocess.run(
            [*program, '-p', f'engine.address:={address}'], capture_output=True, text=True
        )
        assert run.returncode == 1 and reason in run.stdout + run.stderr
