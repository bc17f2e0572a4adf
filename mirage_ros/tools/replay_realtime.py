"""A bag played to a node at its own pace: what was observed and answered, and what was dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
import time

from mirage.msg import ImaginedChunk, PlannedTrajectory
import numpy as np
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile

from mirage_model.data.config import BagConfig
from mirage_model.evaluation.config import ReplayConfig
from mirage_model.evaluation.replay.command import open_bag
from mirage_model.evaluation.replay.replay import request_for, views
from mirage_model.evaluation.replay.segments import segments_of
from mirage_model.interface import ModelInfo
from mirage_ros.tools.replay_client import Sensors, plan_message

PATIENCE, AFTERWARDS = 120.0, 10.0
"""Seconds to wait for the node and, once the bag has ended, for its last answer; and then for its figures."""


class Player(Node):
    """A robot that drives the bag again, with its plan at the start of every segment."""

    def __init__(self) -> None:
        super().__init__('mirage_replay')
        qos = QoSProfile(depth=10)
        self.sensors = Sensors(self)
        self.plans = self.create_publisher(PlannedTrajectory, 'trajectory', qos)
        self.answered: dict[str, float] = {}
        self.create_subscription(ImaginedChunk, 'imagined/chunk', self._on_chunk, qos)

    def _on_chunk(self, chunk: ImaginedChunk) -> None:
        if chunk.index + 1 == chunk.count:
            self.answered[chunk.request_id] = time.monotonic()


def play(
    path: Path,
    bag_config: BagConfig,
    config: ReplayConfig,
    about: ModelInfo,
    *,
    pace: float,
    node: Popen,
) -> dict[str, object]:
    """Images sent, what the node says of them, and how many plans were answered, and how late.

    Raises TimeoutError where the node does not appear, ChildProcessError where it ends.
    """
    bag = open_bag(path, bag_config, about)
    listing = bag.listing()
    segments, _ = segments_of(listing, bag.stamps, about.frame_rate, config)
    plans = {segment.observed[-1]: segment for segment in segments}
    rows = [row for part in listing.parts for row in part.rows]
    player, executor = Player(), SingleThreadedExecutor()
    executor.add_node(player)

    def spin(seconds: float, done: Callable[[], object] = lambda: False) -> bool:
        """Until it is done or the seconds are over; True if it was done."""
        until = time.monotonic() + seconds
        while not done() and time.monotonic() < until:
            if node.poll() is not None:
                raise ChildProcessError(f'the node ended with {node.returncode}')
            executor.spin_once(timeout_sec=0.01)
        return bool(done())

    def connected() -> bool:
        heard = player.plans.get_subscription_count() and player.sensors.reports
        return bool(heard and player.sensors.connected(depth=bool(bag_config.depth)))

    try:
        if not spin(PATIENCE, connected):
            raise TimeoutError(f'the node did not appear within {PATIENCE:.0f} s')
        began, asked = time.monotonic(), {}
        for row in rows:
            elapsed = (float(bag.stamps[row]) - float(bag.stamps[rows[0]])) / pace
            spin(began + elapsed - time.monotonic())
            (view,) = views(bag, [row])
            player.sensors.send(view)
            if row in plans:
                request = request_for(bag, plans[row], about, config, config.seeds[0])
                asked[request.request_id] = time.monotonic()
                player.plans.publish(plan_message(request))
        # the newest plan is the one that is never dropped for another
        spin(PATIENCE, lambda: list(asked)[-1] in player.answered)
        reports = player.sensors.reports
        spin(AFTERWARDS, lambda: player.sensors.reports > reports + 1)
        late = [player.answered[name] - asked[name] for name in asked if name in player.answered]
        return {
            'images sent': len(rows),
            'plans sent': len(asked),
            'plans answered': len(late),
            'plans dropped': len(asked) - len(late),
            'seconds from plan to last frame, median': float(np.median(late)) if late else None,
            'pace': pace,
            'node': player.sensors.counts,
        }
    finally:
        executor.shutdown()
        player.destroy_node()
