"""Replay a recording through a node, which is started and ended: ``mirage_replay_node BAG``.

In lockstep the player waits until each view is observed and each segment is answered, and the
figures are those of ``mirage replay``. With ``--free-running`` the bag plays at its own pace, and
free_running.json says what the node dropped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
import shutil
import signal
import sys

from mirage_model.cli import Command, run
from mirage_model.evaluation.config import ReplayConfig
from mirage_model.io import as_json, write_json
from mirage_ros.command_line import without_ros_arguments
from mirage_ros.tools.config import ReplayNodeCommand
from mirage_ros.tools.start_node import node_command, quiet_network, running_node
from mirage_ros.tools.start_server import node_engine

OBSERVING = {
    'observe.pose_source': 'tf',
    'tf.wait': 5.0,
    'request.max_age': 0.0,
    'tf.history': 3600.0,
    'diagnostics.period': 0.1,
    'qos.sensor.reliability': 'reliable',
    'compression.format': 'none',
    'limits.max_frames': 100_000,
    'limits.max_message_bytes': 2**30,
}
EVERY_IMAGE = {
    'observe.rate': 60.0,
    'keyframe.distance': 0.0,
    'keyframe.angle': 0.0,
    'keyframe.gain': 0.0,
}
"""In lockstep the replay chooses what is observed, and the node takes all of it."""


def node_parameters(config: ReplayConfig, *, depth: bool, lockstep: bool) -> dict[str, object]:
    """Return the parameters of a node that replays a bag, but for those of its engine."""
    return {
        'request.steps': config.steps,
        'sensors.use_depth': depth,
        **OBSERVING,
        **(EVERY_IMAGE if lockstep else {}),
    }


def main(words: list[str] | None = None) -> int:
    quiet_network()  # before rclpy, whose Fast DDS reads the environment
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    words = sys.argv[1:] if words is None else words
    command = Command(
        'mirage_ros.tools.config:ReplayNodeCommand',
        'mirage_ros.tools.replay:replay_through_node',
        '',
    )
    words = without_ros_arguments('mirage_replay_node', words)
    return run(command, words, prog='mirage_replay_node')


def replay_through_node(command: ReplayNodeCommand) -> int:
    """Start a node, replay the bag through it, end it; return the exit status.

    Raises ValueError for a bag that cannot be used, TimeoutError where the node does not answer,
    and ChildProcessError where it ends.
    """
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from mirage_model.evaluation.replay import command as replay
    from mirage_model.evaluation.replay.bag_recovery import readable_copy
    from mirage_model.model.checkpoint import EMBEDDED, load_model_info
    from mirage_ros.tools.replay_client import NodeEngine
    from mirage_ros.tools.replay_realtime import play

    config = dataclasses.replace(command.replay, devices=command.replay.devices[:1])
    about = load_model_info(Path(config.model_folder) if config.model_folder else EMBEDDED)
    depth = bool(command.topics.depth)
    parameters = node_parameters(config, depth=depth, lockstep=not command.free_running)
    with (
        node_engine(command.engine, config.engine_options, device=config.devices[0]) as served,
        running_node(node_command({**served, **parameters})) as node,
    ):
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        try:
            if command.free_running:
                out = command.out
                whole, damage = readable_copy(command.bag, out / 'intact')
                found = play(whole, command.topics, config, about, pace=command.pace, node=node)
                shutil.rmtree(out / 'intact', ignore_errors=True)
                out.mkdir(parents=True, exist_ok=True)
                write_json(out / 'free_running.json', found)
                print(as_json(found))
                if damage:
                    print(f'failed: {damage}', file=sys.stderr)
                return 1 if damage else 0
            engine = NodeEngine(about, depth=depth, alive=lambda: node.poll() is None)
            try:
                outcome = replay.run(
                    engine,
                    command.bag,
                    command.topics,
                    config,
                    command.out,
                    way='through the node',
                )
            finally:
                engine.close()
        finally:
            rclpy.try_shutdown()
    return replay.print_outcome(outcome)


if __name__ == '__main__':
    sys.exit(main())
