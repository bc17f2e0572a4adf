"""ROS for the tests: a domain of their own on this machine alone, the project's DDS profile,
strict messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import os
from pathlib import Path
import sys
import tempfile

ROOT = Path(__file__).resolve().parents[2]
# above 101 the ports of a domain overlap with those that the system gives out
os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 101)
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['ROS_LOG_DIR'] = tempfile.mkdtemp(prefix='mirage-test-log-')
os.environ['ROS_PYTHON_CHECK_FIELDS'] = '1'
os.environ['RCUTILS_LOGGING_USE_STDOUT'] = '1'
os.environ['RCUTILS_LOGGING_BUFFERED_STREAM'] = '0'
os.environ['FASTRTPS_DEFAULT_PROFILES_FILE'] = str(ROOT / 'config' / 'fastdds.xml')

import pytest  # noqa: E402
import rclpy  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from processes import Client, NodeProcess  # noqa: E402


@pytest.fixture(scope='session')
def ros() -> Iterator[None]:
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def client(ros: None) -> Iterator[Client]:
    with Client() as client:
        yield client


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """Start nodes with an engine that answers at once; they are stopped when the test ends, and
    must end well."""
    nodes: list[NodeProcess] = []

    def start(**parameters) -> NodeProcess:
        nodes.append(NodeProcess(tmp_path / f'node-{len(nodes)}.log', **parameters))
        return nodes[-1]

    yield start
    for node in nodes:
        node.stop()
