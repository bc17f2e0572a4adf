"""A bag played to a node at its own pace: what was observed and imagined, and what was dropped."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from subprocess import Popen
import time

from diagnostic_msgs.msg import DiagnosticArray
from mirage.msg import ImaginedChunk, PlannedTrajectory
import numpy as np
from rclpy.qos import QoSProfile

from mirage_model.data.config import BagConfig
from mirage_model.evaluation.config import ReplayConfig
from mirage_model.evaluation.replay.command import open_bag
from mirage_model.evaluation.replay.replay import request_for, views
from mirage_model.evaluation.replay.segments import segments_of
from mirage_model.interface import ModelInfo
from mirage_ros.tools.fake_robot import FakeRobot
from mirage_ros.tools.replay_client import TOPICS, node_counts, trajectory_of

PATIENCE, AFTERWARDS = 120.0, 10.0
"""Longest wait for the node and for its last answer, and for its last diagnostics [s]."""


def play(
    path: Path,
    bag_config: BagConfig,
    config: ReplayConfig,
    about: ModelInfo,
    *,
    pace: float,
    node: Popen,
) -> dict[str, object]:
    """Play a bag with a trajectory at the start of each segment; return counts and the latency.

    Raises TimeoutError where the node does not appear, ChildProcessError where it ends.
    """
    bag = open_bag(path, bag_config, about)
    listing = bag.listing()
    segments, _ = segments_of(listing, bag.stamps, about.frame_rate, config)
    plans = {segment.observed[-1]: segment for segment in segments}
    rows = [row for part in listing.parts for row in part.rows]
    topics = {name: kind for name, kind in TOPICS.items() if bag_config.depth or name != 'depth'}
    answered: dict[str, float] = {}

    def on_chunk(chunk: ImaginedChunk) -> None:
        if chunk.index + 1 == chunk.count:
            answered[chunk.request_id] = time.monotonic()

    with FakeRobot(
        'mirage_replay',
        topics={**topics, 'trajectory': PlannedTrajectory},
        patience=PATIENCE,
        alive=lambda: node.poll() is None,
    ) as robot:
        robot.receive('/diagnostics', DiagnosticArray)
        robot.node.create_subscription(
            ImaginedChunk, 'imagined/chunk', on_chunk, QoSProfile(depth=10)
        )
        robot.connect()
        robot.until(
            lambda: node_counts(robot) is not None, complaint='the node did not become active'
        )
        began, sent = time.monotonic(), {}
        for row in rows:
            due = began + (float(bag.stamps[row]) - float(bag.stamps[rows[0]])) / pace
            robot.until(lambda: time.monotonic() >= due)  # noqa: B023
            (view,) = views(bag, [row])
            robot.send_view(view)
            if row in plans:
                request = request_for(bag, plans[row], about, config, config.seeds[0])
                sent[request.request_id] = time.monotonic()
                robot.send('trajectory', trajectory_of(request))
        # the newest plan is never dropped for another
        with suppress(TimeoutError):
            robot.until(lambda: list(sent)[-1] in answered)
        reports = len(robot.received['/diagnostics'])
        with suppress(TimeoutError):
            robot.until(lambda: len(robot.received['/diagnostics']) > reports + 1, AFTERWARDS)
        late = [answered[name] - sent[name] for name in sent if name in answered]
        return {
            'images sent': len(rows),
            'plans sent': len(sent),
            'plans answered': len(late),
            'plans dropped': len(sent) - len(late),
            'seconds from plan to last frame, median': float(np.median(late)) if late else None,
            'pace': pace,
            'node': node_counts(robot),
        }
