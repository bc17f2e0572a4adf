"""Measure what a node costs, from another process over DDS: ``mirage bench node``.

- Conversion, compression, copies and DDS at 704x1280: the time from a goal to its last chunk less
  the engine's time, for each frame. The engine answers at once.
- Scores of 64 candidates of 20 poses with that engine: the time in the node, and from request to
  response.
- The first request to mirage-tiny after the node was configured, and the tenth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
import json
import os
import sys
import time
from typing import Any

from mirage.action import Imagine
from mirage.msg import PlannedTrajectory
from mirage.srv import ScoreTrajectories
from nav_msgs.msg import Odometry
import numpy as np
import rclpy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mirage_model.interface import Observation
from mirage_model.messages.poses import matrix_from_numbers
from mirage_ros import convert
from mirage_ros.tools.config import NodeBenchConfig
from mirage_ros.tools.fake_robot import (
    BASE_FROM_CAMERA,
    CAMERA,
    CAMERA_FRAME,
    FakeRobot,
    planned_trajectory,
)
from mirage_ros.tools.start_node import NODE, ROOT, node_command, quiet_network, running_node

HEIGHT, WIDTH, FRAMES, CHUNKS, REPEATS = 704, 1280, 32, 2, 5
CANDIDATES, POSES = 64, 20
REQUESTS = 10
GOAL_MS = 10.0
"""Largest cost of a frame [ms]."""
FIRST_GOAL = 1.2
"""Largest ratio of the first request to the later ones."""
INSTANT = (sys.executable, str(ROOT / 'tests' / 'instant_engine.py'))
"""The node with an engine that answers at once; it is in the source tree alone."""


def main(config: NodeBenchConfig) -> int:
    """Measure, print and write the metrics; return 1 where a goal is missed."""
    quiet_network()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    frames = _frame_costs()
    scores, in_node = _score_costs()
    requests = _request_seconds()
    rclpy.try_shutdown()
    later = float(np.median(requests[1:]))
    result: dict[str, Any] = {
        'milliseconds_a_frame': [round(value, 2) for value in frames],
        'median': round(float(np.median(frames)), 2),
        'goal': GOAL_MS,
        'frames': f'{FRAMES * CHUNKS} of {HEIGHT}x{WIDTH}',
        'milliseconds_a_score': [round(value, 1) for value in scores],
        'median_score': round(float(np.median(scores)), 1),
        'median_score_in_the_node': round(float(np.median(in_node)), 1),
        'scores': f'{CANDIDATES} candidates of {POSES} poses',
        'seconds_of_requests': [round(value, 3) for value in requests],
        'first_over_later': round(requests[0] / later, 3),
        'goal_first_over_later': FIRST_GOAL,
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(result, indent=2) + '\n')
    print(json.dumps(result, indent=2))
    return int(result['median'] > GOAL_MS or result['first_over_later'] > FIRST_GOAL)


@contextmanager
def _connected(
    command: list[str], topics: dict[str, type], environment: Mapping[str, object] | None = None
) -> Iterator[FakeRobot]:
    os.environ.update({key: str(value) for key, value in (environment or {}).items()})
    with running_node(command) as node:
        with FakeRobot(topics=topics, alive=lambda: node.poll() is None) as robot:
            robot.connect()
            yield robot


def _view(height: int, width: int) -> Observation:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Observation(
        image=noise,
        K=np.array([[80.0, 0, (width - 1) / 2], [0, 80, (height - 1) / 2], [0, 0, 1]]),
        world_from_camera=matrix_from_numbers(BASE_FROM_CAMERA, name='camera'),
        time=1.0,
        depth=np.full((height, width), 3.0, np.float32),
    )


def _trajectory(frames: int, **frame: str) -> PlannedTrajectory:
    """Return a trajectory straight along x, at 8 Hz."""
    poses = np.tile(np.eye(4), (frames + 1, 1, 1))
    poses[:, 0, 3] = 0.05 * np.arange(frames + 1)
    return planned_trajectory(poses, time.time() + 60 + np.arange(frames + 1) / 8, **frame)


def _frame_costs() -> list[float]:
    """Return the cost of a frame in each repeat [ms]."""
    size = {'INSTANT_HEIGHT': HEIGHT, 'INSTANT_WIDTH': WIDTH, 'INSTANT_NEW_FRAMES': FRAMES}
    with _connected(node_command({}, program=INSTANT), CAMERA, size) as robot:
        for _ in range(5):  # sensor topics are best effort
            robot.send_view(_view(HEIGHT, WIDTH))
            robot.spin(0.1)
        costs = []
        for _ in range(REPEATS):
            robot.chunks.clear()
            began = time.monotonic()
            goal = robot.goal(Imagine.Goal(trajectory=_trajectory(FRAMES * CHUNKS)))
            robot.until(lambda: len(robot.chunks) == CHUNKS, complaint='no chunk came')
            seconds = time.monotonic() - began
            goal.result()
            seconds -= sum(chunk.seconds for chunk in robot.chunks)
            costs.append(1000 * seconds / (FRAMES * CHUNKS))
    for name in size:
        del os.environ[name]
    return costs


def _score_costs() -> tuple[list[float], list[float]]:
    """Return the times from request to response, and those in the node [ms]."""
    parameters = {
        'observe.pose_source': 'odometry',
        'frames.base_from_camera': list(BASE_FROM_CAMERA),
    }
    request = ScoreTrajectories.Request(
        trajectories=[_trajectory(POSES - 1, moving_frame='base_link') for _ in range(CANDIDATES)],
        coarse=True,
    )
    command = node_command(parameters, program=INSTANT)
    milliseconds, in_node = [], []
    with _connected(command, {'odometry': Odometry, **CAMERA}) as robot:

        def scored() -> bool:
            robot.send_view(_view(96, 160))
            return robot.call(ScoreTrajectories, 'score_trajectories', request).success

        robot.until(scored, complaint='the node observed nothing')
        for _ in range(2 * REPEATS):
            began = time.monotonic()
            response = robot.call(ScoreTrajectories, 'score_trajectories', request)
            milliseconds.append((time.monotonic() - began) * 1000)
            assert response.success
            in_node.append(response.seconds * 1000)
    return milliseconds, in_node


def _request_seconds() -> list[float]:
    """Return the times of requests for one chunk, the first as soon as the node is ready [s]."""
    seconds = []
    view = _view(96, 160)
    assert view.depth is not None
    header = Header(frame_id=CAMERA_FRAME)
    with _connected(
        node_command({}, program=NODE), {'image': Image, 'camera_info': CameraInfo}
    ) as robot:
        for _ in range(REQUESTS):
            goal = Imagine.Goal(
                seed_image=[convert.image_message(view.image, 'rgb8', header)],
                seed_depth=[convert.image_message(view.depth, '32FC1', header)],
                trajectory=_trajectory(16),
            )
            goal.trajectory.camera_info = [convert.camera_info_message(view.K, 96, 160, header)]
            robot.chunks.clear()
            began = time.monotonic()
            sent = robot.goal(goal)
            robot.until(lambda: robot.chunks, complaint='no chunk came')
            seconds.append(time.monotonic() - began)
            sent.result()
    return seconds
