"""The demo: a node and a robot in a simulated world as two processes, with DDS between them.

Writes film.mp4, contact_sheet.png and summary.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib.util import find_spec
import os
from pathlib import Path
import random
import signal
import subprocess
import sys

ROOT = Path(__file__).resolve().parents[2]


def shared_file(name: str) -> Path:
    """A file of config/: in the source tree, or where the package is installed."""
    if (ROOT / 'config' / name).exists():
        return ROOT / 'config' / name
    from ament_index_python import get_package_share_directory

    os.environ.setdefault('AMENT_PREFIX_PATH', sys.prefix)
    return Path(get_package_share_directory('mirage')) / 'config' / name


def quiet_network() -> None:
    """Keep the demo on this machine and apart from other ROS programs, unless told otherwise."""
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.randint(1, 101)))
    os.environ.setdefault('FASTRTPS_DEFAULT_PROFILES_FILE', str(shared_file('fastdds.xml')))


@contextmanager
def running_node(command: list[str]) -> Iterator[subprocess.Popen]:
    """A node that is told to end, and waited for, when the block is left, however that happens."""
    # its own group: Ctrl-C reaches this process alone, which then ends the node in order
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


def node_command(model_folder: str, device: str) -> list[str]:
    parameters = {
        'model.folder': f"'{model_folder}'",
        'model.device': f"'{device}'",
        'request.memory_frames': 'true',
    }
    command = [sys.executable, '-m', 'mirage_ros.node', '--ros-args', '--log-level', 'warn']
    for name, value in parameters.items():
        command += ['-p', f'{name}:={value}']
    return command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out', type=Path, default=Path('out/demo'), help='folder for the results'
    )
    parser.add_argument('--frames', type=int, help='frames to imagine')
    parser.add_argument('--map-name', help='map of Freedoom, E1M1 to E4M9 or MAP01 to MAP32')
    parser.add_argument('--kind', help='forward, turn, out_and_back or wander')
    parser.add_argument('--world-seed', type=int, help='where on the map the drive starts')
    parser.add_argument(
        '--model-folder', default='', help='folder with weights; empty: mirage-tiny'
    )
    parser.add_argument('--recording', type=Path, help='file for Rerun, .rrd; needs rerun-sdk')
    parser.add_argument('--device', default='cpu', help='cpu, cuda or cuda:N')
    quiet_network()  # before rclpy, whose Fast DDS reads the environment
    from rclpy.utilities import remove_ros_args

    arguments = parser.parse_args(remove_ros_args()[1:])  # a launch file may add --ros-args
    if missing := [name for name in ('vizdoom', 'omg') if find_spec(name) is None]:
        print(
            f"mirage_demo: {' and '.join(missing)} cannot be imported: the demo's world needs "
            'pip install vizdoom omgifol, in the versions of requirements/dev.txt',
            file=sys.stderr,
        )
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with running_node(node_command(arguments.model_folder, arguments.device)) as node:
            from mirage_ros.tools.demo_client import DemoConfig, run

            folder = Path(arguments.model_folder) if arguments.model_folder else None
            config = DemoConfig(
                **{
                    item.name: getattr(arguments, item.name)
                    for item in fields(DemoConfig)
                    if getattr(arguments, item.name, None) is not None
                }
            )
            summary = run(
                arguments.out,
                config,
                model_folder=folder,
                node=node,
                recording=arguments.recording,
            )
    except KeyboardInterrupt:
        print('mirage_demo: interrupted', file=sys.stderr)
        return 130
    except (TimeoutError, ChildProcessError, ImportError) as error:
        print(f'mirage_demo: {error}', file=sys.stderr)
        return 1
    for name, value in summary.items():
        print(f'  {name}: {value}')
    print(f'{arguments.out}/: film.mp4, contact_sheet.png, summary.json')
    return 0


if __name__ == '__main__':
    sys.exit(main())
