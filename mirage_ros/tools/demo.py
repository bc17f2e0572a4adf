"""The demo: a node and a robot in a simulated world as two processes, with DDS between them.

Writes video.mp4, contact_sheet.png and summary.json.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
import signal
import sys

from mirage_model.cli import Command, run
from mirage_ros.command_line import without_ros_arguments
from mirage_ros.tools.config import DemoCommand
from mirage_ros.tools.start_node import node_command, quiet_network, running_node
from mirage_ros.tools.start_server import node_engine


def main() -> int:
    quiet_network()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    words = without_ros_arguments('mirage_demo', sys.argv[1:])  # a launch file may add them
    command = Command('mirage_ros.tools.config:DemoCommand', 'mirage_ros.tools.demo:demo', '')
    return run(command, words, prog='mirage_demo')


def demo(command: DemoCommand) -> int:
    """Run the demo; return the exit status. Raises ModuleNotFoundError without the simulator."""
    for name in ('vizdoom', 'omg', 'mujoco'):  # before the node loads its model
        if find_spec(name) is None:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
    command.out.mkdir(parents=True, exist_ok=True)
    with (
        node_engine(command.engine, command.engine_options, device=command.device) as engine,
        running_node(node_command({**engine, 'request.memory_frames': True})) as node,
    ):
        from mirage_ros.tools.demo_client import run_demo

        summary = run_demo(
            command.out,
            command.world,
            model_folder=Path(command.model_folder) if command.model_folder else None,
            node=node,
            recording=command.recording,
        )
    for name, value in summary.items():
        print(f'  {name}: {value}')
    print(f'{command.out}/: video.mp4, contact_sheet.png, summary.json')
    return 0


if __name__ == '__main__':
    sys.exit(main())
