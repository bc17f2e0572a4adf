"""Start a node in a process of its own, apart from other ROS programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
import os
from pathlib import Path
import random
import signal
import subprocess
import sys

ROOT = Path(__file__).resolve().parents[2]
NODE = (sys.executable, '-m', 'mirage_ros')


def shared_file(name: str) -> Path:
    """Return a file of config/, in the source tree or where the package is installed."""
    if (ROOT / 'config' / name).exists():
        return ROOT / 'config' / name
    from ament_index_python import get_package_share_directory

    os.environ.setdefault('AMENT_PREFIX_PATH', sys.prefix)
    return Path(get_package_share_directory('mirage')) / 'config' / name


def quiet_network() -> None:
    """Keep ROS on this machine and in a domain of its own, unless the environment says otherwise.

    Call it before rclpy is initialised: Fast DDS reads the environment then.
    """
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.randint(1, 101)))
    os.environ.setdefault('FASTRTPS_DEFAULT_PROFILES_FILE', str(shared_file('fastdds.xml')))


def node_command(
    parameters: Mapping[str, object], *, program: tuple[str, ...] = NODE, log_level: str = 'warn'
) -> list[str]:
    """Return the command that runs a node with parameters."""
    command = [*program, '--ros-args', '--log-level', log_level]
    for name, value in parameters.items():
        text = f"'{value}'" if isinstance(value, str | Path) else str(value)
        command += ['-p', f'{name}:={text.lower() if isinstance(value, bool) else text}']
    return command


@contextmanager
def running_node(command: list[str]) -> Iterator[subprocess.Popen]:
    """Run a node while the block runs; interrupt it, and wait for its end, however the block is
    left."""
    # a process group of its own: Ctrl-C reaches this process alone, which then ends the node
    node = subprocess.Popen(command, start_new_session=True)
    try:
        yield node
    finally:
        node.send_signal(signal.SIGINT)
        try:
            node.wait(timeout=60)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()
