"""``mirage_replay_node BAG``: replay a recorded drive through a running node, which it starts and ends.

In lockstep the player waits until each view is observed and each segment is answered, and the figures are those
of ``mirage-replay``.
With ``--free-running`` the bag plays at its own pace, and free_running.json says what the node dropped.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
import shutil
import signal
import sys

from mirage_model.evaluation.replay.command import add_options, configure, run, say
from mirage_model.evaluation.replay.segments import ReplayConfig
from mirage_model.evaluation.replay.truncated import intact
from mirage_model.io import as_json, write_json
from mirage_model.model.checkpoint import EMBEDDED, describe
from mirage_ros.tools.demo import quiet_network, running_node

OBSERVING = {
    'pose_source': 'tf',
    'tf_wait': 5.0,
    'tf_seconds': 3600.0,
    'diagnostics_period': 0.1,
    'sensor_reliability': 'reliable',
    'compression': 'none',
    'max_frames': 100_000,
    'max_message_bytes': 2**30,
}
EVERY_IMAGE = {
    'observe_rate': 60.0,
    'keyframe_distance': 0.0,
    'keyframe_angle': 0.0,
    'keyframe_gain': 0.0,
}
"""In lockstep the replay chooses what is observed, and the node takes all of it."""


def node_command(config: ReplayConfig, *, lockstep: bool) -> list[str]:
    parameters = {
        'model_folder': f"'{config.model_folder}'",
        'device': f"'{config.devices[0]}'",
        'steps': config.steps,
        'allow_unscaled_depth': str(config.allow_unscaled_depth).lower(),
        'refine_cameras': str(config.refine_cameras).lower(),
        **OBSERVING,
        **(EVERY_IMAGE if lockstep else {}),
    }
    command = [sys.executable, '-m', 'mirage_ros.node', '--ros-args', '--log-level', 'warn']
    for name, value in parameters.items():
        command += ['-p', f'{name}:={value}']
    return command


def main(arguments: list[str] | None = None) -> int:
    quiet_network()  # before rclpy, whose Fast DDS reads the environment
    import rclpy
    from rclpy.signals import SignalHandlerOptions
    from rclpy.utilities import remove_ros_args

    from mirage_ros.tools.replay_client import NodeEngine
    from mirage_ros.tools.replay_realtime import play

    parser = argparse.ArgumentParser(
        prog='mirage_replay_node', description=__doc__.splitlines()[0]
    )
    parser.add_argument('bag', type=Path, help='folder of the bag, MCAP or sqlite3, or one file')
    parser.add_argument('--config', type=Path, help='YAML with these options by name')
    parser.add_argument('--out', type=Path, default=Path('out/replay/node'))
    parser.add_argument('--free-running', action='store_true', help='do not wait for answers')
    parser.add_argument('--pace', type=float, default=1.0, help='of a free run, times real time')
    add_options(parser)
    words = remove_ros_args(sys.argv)[1:] if arguments is None else arguments
    given = vars(parser.parse_args(words))
    bag, path, out = given.pop('bag'), given.pop('config'), given.pop('out')
    free, pace = given.pop('free_running'), given.pop('pace')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        bag_config, config = configure(path, given)
        config = replace(config, devices=config.devices[:1])  # a node has one
        about = describe(Path(config.model_folder) if config.model_folder else EMBEDDED)
        use_depth = f'use_depth:={str(bool(bag_config.depth)).lower()}'
        command = [*node_command(config, lockstep=not free), '-p', use_depth]
        with running_node(command) as node:
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
            try:
                if free:
                    whole, damage = intact(bag, out / 'intact')
                    found = play(whole, bag_config, config, about, pace=pace, node=node)
                    shutil.rmtree(out / 'intact', ignore_errors=True)
                    out.mkdir(parents=True, exist_ok=True)
                    write_json(out / 'free_running.json', found)
                    print(as_json(found))
                    if damage:
                        print(f'failed: {damage}', file=sys.stderr)
                    return 1 if damage else 0
                depth = bool(bag_config.depth)
                engine = NodeEngine(about, depth=depth, alive=lambda: node.poll() is None)
                try:
                    outcome = run(engine, bag, bag_config, config, out, way='through the node')
                finally:
                    engine.close()
            finally:
                rclpy.try_shutdown()
    except (ValueError, ImportError, TimeoutError, ChildProcessError, RuntimeError) as error:
        print(f'mirage_replay_node: {error}', file=sys.stderr)
        return 1
    return say(outcome)


if __name__ == '__main__':
    sys.exit(main())
