"""Send right and wrong requests to a node for minutes: ``mirage bench node-soak``.

Writes summary.json: requests sent, answered, rejected with their reasons and lost, crashes,
resident size of the node at the quarters, latencies, and whether a saved memory gives the same
scores after the node was killed and started again.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
import json
import math
import os
from pathlib import Path
import random
import re
import signal
import subprocess
import tempfile
import time
from typing import Any

from action_msgs.msg import GoalStatus
from mirage.action import Imagine, ImagineCandidates
from mirage.msg import PlannedTrajectory
from mirage.srv import MemoryFile, ScoreTrajectories
from nav_msgs.msg import Odometry
import numpy as np
import rclpy
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import Trigger

from mirage_model.interface import Observation
from mirage_model.messages.poses import matrix_from_numbers
from mirage_ros import convert
from mirage_ros.tools.config import SoakCommand, SoakConfig
from mirage_ros.tools.fake_robot import (
    BASE_FRAME,
    BASE_FROM_CAMERA,
    CAMERA,
    FakeRobot,
    planned_trajectory,
)
from mirage_ros.tools.start_node import NODE, node_command, quiet_network

HEIGHT, WIDTH = 96, 160
FOCAL = 80.0
PATIENCE = 120.0
"""Seconds after which a request counts as lost."""
GROWTH = 1.1
"""Largest resident size of the node, as a multiple of that after the first quarter."""
KINDS = ('goal', 'score', 'candidates', 'cancelled', 'late', 'huge', 'malformed')
TIMES = {
    'goal': 0.15, 'score': 0.3, 'candidates': 0.1, 'cancelled': 0.15, 'late': 0.1, 'huge': 0.1,
    'malformed': 0.1,
}  # fmt: skip


@dataclass
class Asked:
    kind: str
    at: float
    answers: int = 0


def circle_view(step: int) -> Observation:
    """Return what the robot sees at a step of its circle of 2 m radius."""
    angle = step * 0.02
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    grey = 120 + 60 * np.sin((x + 40 * angle) / 9) + 40 * np.cos(y / 7 + angle)
    world_from_base = np.eye(4)
    world_from_base[:3, :3] = Rotation.from_euler('z', angle + math.pi / 2).as_matrix()
    world_from_base[:2, 3] = 2 * math.cos(angle), 2 * math.sin(angle)
    base_from_camera = matrix_from_numbers(BASE_FROM_CAMERA, name='camera')
    return Observation(
        image=np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2),
        K=np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]]),
        world_from_camera=world_from_base @ base_from_camera,
        time=time.time(),
        depth=np.full((HEIGHT, WIDTH), 3.0 + math.sin(angle), np.float32),
    )


class Planner:
    """A client with one request at a time, of a random kind."""

    def __init__(self, name: str, config: SoakConfig):
        self.node = Node(f'soak_{name}')
        self._name, self._config = name, config
        self._random = random.Random(f'{config.seed} {name}')
        self._imagine = ActionClient(self.node, Imagine, 'imagine')
        self._candidates = ActionClient(self.node, ImagineCandidates, 'imagine_candidates')
        self._score = self.node.create_client(ScoreTrajectories, 'score_trajectories')
        self.asked: list[Asked] = []
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.latencies: dict[str, list[float]] = {}
        self._next = 0.0
        self._cancel_at = math.inf
        self._handle: Any = None

    def ready(self) -> bool:
        actions = self._imagine.server_is_ready() and self._candidates.server_is_ready()
        return actions and self._score.service_is_ready()

    @property
    def waits(self) -> bool:
        return bool(self.asked) and self.asked[-1].answers == 0

    def step(self, *, ask: bool = True) -> None:
        """Send a request, cancel it, or count it as lost, when it is due."""
        now = time.monotonic()
        if self._handle is not None and now > self._cancel_at:
            self._handle.cancel_goal_async()
            self._cancel_at = math.inf
        if self.waits and now - self.asked[-1].at > PATIENCE:
            self._answered(self.asked[-1], 'lost', '')
        if ask and not self.waits and now > self._next:
            kind = self._random.choices(KINDS, [TIMES[kind] for kind in KINDS])[0]
            self._ask(kind)

    def _ask(self, kind: str) -> None:
        asked = Asked(kind, time.monotonic())
        self.asked.append(asked)
        self._handle, self._cancel_at = None, math.inf
        if kind == 'score':
            request = ScoreTrajectories.Request(
                trajectories=[self._path(16) for _ in range(8)], threshold=0.5, coarse=True
            )
            self._score.call_async(request).add_done_callback(
                lambda future: self._scored(asked, future.result())
            )
        elif kind in ('candidates', 'huge') and (
            kind == 'candidates' or self._random.random() < 0.5
        ):
            count = 2 if kind == 'candidates' else 200
            goal = ImagineCandidates.Goal(
                trajectories=[self._path(2) for _ in range(count)], steps=1, deadline=60.0
            )
            self._send(self._candidates, asked, goal)
        else:
            self._send(self._imagine, asked, self._goal(kind))

    def _path(self, frames: int, *, frame: str = 'map') -> PlannedTrajectory:
        poses = np.tile(np.eye(4), (frames + 1, 1, 1))
        poses[:, 0, 3] = 0.05 * np.arange(frames + 1)
        times = time.time() + 5 + np.arange(frames + 1) / 8
        return planned_trajectory(
            poses, times, client=self._name, frame_id=frame, moving_frame=BASE_FRAME
        )

    def _goal(self, kind: str) -> Imagine.Goal:
        goal = Imagine.Goal(trajectory=self._path(8), steps=1, seed=self._random.randrange(100))
        if kind == 'cancelled':
            goal.steps = 1000
            self._cancel_at = time.monotonic() + self._random.random()
        elif kind == 'late':
            goal.trajectory = self._path(8, frame=BASE_FRAME)
            goal.trajectory.header.stamp = convert.stamp(time.time() - 1000)
        elif kind == 'huge':
            goal.trajectory = self._path(12_000)
        elif kind == 'malformed':
            self._random.choice(MISTAKES)(goal)
        return goal

    def _send(self, client: ActionClient, asked: Asked, goal: Any) -> None:
        def accepted(future: Any) -> None:
            handle = future.result()
            if not handle.accepted:
                self._answered(asked, 'rejected', 'goal not accepted')
                return
            self._handle = handle
            handle.get_result_async().add_done_callback(
                lambda future: self._ended(asked, future.result())
            )

        client.send_goal_async(goal).add_done_callback(accepted)

    def _ended(self, asked: Asked, response: Any) -> None:
        names = {GoalStatus.STATUS_SUCCEEDED: 'done', GoalStatus.STATUS_CANCELED: 'cancelled'}
        message = response.result.message
        how = names.get(response.status, message.split(':')[0] or 'failed')
        self._answered(asked, how, message)

    def _scored(self, asked: Asked, response: ScoreTrajectories.Response) -> None:
        self._answered(asked, 'done' if response.success else 'rejected', response.message)

    def _answered(self, asked: Asked, how: str, reason: str) -> None:
        asked.answers += 1
        self.outcomes[how] += 1
        if how not in ('done', 'cancelled'):
            self.reasons[re.sub(r'-?\d[\d.e+]*|nan', '#', reason)[:120]] += 1
        self.latencies.setdefault(asked.kind, []).append(time.monotonic() - asked.at)
        self._next = time.monotonic() + self._random.random() * self._config.pause


def _nan_pose(goal: Imagine.Goal) -> None:
    goal.trajectory.poses[1].position.y = math.nan


def _zero_quaternion(goal: Imagine.Goal) -> None:
    goal.trajectory.poses[0].orientation.w = 0.0


def _no_poses(goal: Imagine.Goal) -> None:
    goal.trajectory.poses, goal.trajectory.times = [], []


def _fewer_times(goal: Imagine.Goal) -> None:
    goal.trajectory.times.pop()


def _broken_image(goal: Imagine.Goal) -> None:
    info = CameraInfo(height=10, width=10, k=[5.0, 0.0, 5.0, 0.0, 5.0, 5.0, 0.0, 0.0, 1.0])
    info.header.frame_id = 'camera'
    image = Image(height=10**6, width=10**6, encoding='rgb8', step=30, data=array('B', bytes(30)))
    goal.trajectory.camera_info, goal.seed_image = [info], [image]


MISTAKES: tuple[Callable[[Imagine.Goal], None], ...] = (
    _nan_pose,
    _zero_quaternion,
    _no_poses,
    _fewer_times,
    _broken_image,
)


class Soak:
    """A node in a process of its own, a robot, and clients."""

    def __init__(self, config: SoakConfig, program: tuple[str, ...], memories: Path):
        self._config, self._program, self._memories = config, program, memories
        self.crashes = 0
        self.observations_sent = 0
        self.process = self._start()
        self.robot = FakeRobot('soak_robot', topics={'odometry': Odometry, **CAMERA})
        self.planners = [Planner(f'planner{i}', config) for i in range(config.clients)]
        for planner in self.planners:
            self.robot.executor.add_node(planner.node)
        self._driving = self.robot.node.create_timer(1 / config.observe_rate, self._drive)

    def _start(self) -> subprocess.Popen:
        parameters = {
            'observe.pose_source': 'odometry',
            'frames.base_from_camera': list(BASE_FROM_CAMERA),
            'observe.rate': 10.0,
            'memory.folder': self._memories,
        }
        command = node_command(parameters, program=self._program, log_level='fatal')
        return subprocess.Popen(command, start_new_session=True)

    def _drive(self) -> None:
        self.robot.send_view(circle_view(self.observations_sent))
        self.observations_sent += 1

    def connect(self) -> None:
        self._until_ready('no node came up')
        self.robot.until(lambda: self.scores() is not None, complaint='the node observed nothing')

    def _until_ready(self, complaint: str, ready: bool = True) -> None:
        self.robot.until(
            lambda: all(planner.ready() == ready for planner in self.planners),
            complaint=complaint,
        )

    def scores(self) -> list[float] | None:
        """Return the observed shares along a path; None where the memory is empty."""
        path = self.planners[0]._path(8)
        response = self.robot.call(
            ScoreTrajectories,
            'score_trajectories',
            ScoreTrajectories.Request(trajectories=[path], threshold=0.5),
        )
        return list(response.scores[0].observed) if response.success else None

    def run(self) -> list[int]:
        """Send requests for the whole time; return the node's resident sizes at the quarters
        [bytes]."""
        began = time.monotonic()
        rss: list[int] = []
        quarter = self._config.minutes * 60 / 4
        while len(rss) < 4:
            if self.process.poll() is not None:
                self.crashes += 1
                self.process = self._start()
            for planner in self.planners:
                planner.step()
            self.robot.spin(0.02)
            if time.monotonic() - began > quarter * (len(rss) + 1):
                rss.append(resident_bytes(self.process.pid))
                print(f'[soak] quarter {len(rss)}: {rss[-1] / 2**20:.0f} MiB', flush=True)
        while any(planner.waits for planner in self.planners):
            for planner in self.planners:
                planner.step(ask=False)
            self.robot.spin(0.02)
        return rss

    def kill_and_restore(self) -> bool:
        """Save, kill, start again, load; return whether the memory gives the same scores."""
        self._driving.cancel()
        # images that are on their way change nothing between the scores and the file
        self.robot.call(Trigger, 'pause_observing')
        before = self.scores()
        file = MemoryFile.Request(file='soak.safetensors')
        saved = self.robot.call(MemoryFile, 'save_memory', file)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        # DDS reports the killed node as ready for a while
        self._until_ready('the killed node is still discovered', ready=False)
        self.process = self._start()
        self._until_ready('the node did not come up again')
        self.robot.until(
            lambda: self.robot.call(MemoryFile, 'load_memory', file).success,
            complaint='the saved memory did not load',
        )
        return bool(saved.success and before and self.scores() == before)

    def close(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=60)
        self.robot.executor.shutdown()
        return code


def resident_bytes(pid: int) -> int:
    """Return the resident size of a process [bytes], 0 where it has ended."""
    text = Path(f'/proc/{pid}/status').read_text()
    found = re.search(r'VmRSS:\s+(\d+) kB', text)
    return int(found[1]) * 1024 if found else 0


def summary(soak: Soak, config: SoakConfig, rss: list[int], restored: bool) -> dict:
    planners = soak.planners
    asked = [request for planner in planners for request in planner.asked]
    outcomes = sum((planner.outcomes for planner in planners), Counter())
    latencies: dict[str, list[float]] = {}
    for planner in planners:
        for kind, values in planner.latencies.items():
            latencies.setdefault(kind, []).extend(values)
    return {
        'config': asdict(config),
        'observations_sent': soak.observations_sent,
        'sent': len(asked),
        'sent_by_kind': dict(Counter(request.kind for request in asked)),
        'answered': sum(request.answers for request in asked) - outcomes['lost'],
        'answered_more_than_once': sum(request.answers > 1 for request in asked),
        'outcomes': dict(outcomes),
        'rejected': dict(sum((planner.reasons for planner in planners), Counter())),
        'lost': outcomes['lost'],
        'crashes': soak.crashes,
        'rss_mib_at_quarters': [round(value / 2**20, 1) for value in rss],
        'memory_flat': max(rss) <= GROWTH * rss[0],
        'restored_after_kill': restored,
        'latency_s': {
            kind: {
                'median': round(float(np.median(values)), 4),
                'p95': round(float(np.percentile(values, 95)), 4),
            }
            for kind, values in sorted(latencies.items())
        },
    }


def run_soak(config: SoakConfig, out: Path, program: tuple[str, ...] = NODE) -> dict:
    """Write summary.json and return it. Raise TimeoutError where the node stops answering."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    with tempfile.TemporaryDirectory(prefix='mirage-soak-') as memories:
        soak = Soak(config, program, Path(memories))
        try:
            soak.connect()
            rss = soak.run()
            result = summary(soak, config, rss, soak.kill_and_restore())
            result['exit_code'] = soak.close()
        finally:
            if soak.process.poll() is None:
                soak.process.kill()
                soak.process.wait()
            rclpy.try_shutdown()
    out.mkdir(parents=True, exist_ok=True)
    (out / 'summary.json').write_text(json.dumps(result, indent=2) + '\n')
    return result


def main(command: SoakCommand) -> int:
    """Run the soak; return 1 where a request was lost or the memory grew or was not restored."""
    quiet_network()
    os.environ.setdefault('ROS_LOG_DIR', tempfile.gettempdir())
    result = run_soak(command.soak, command.out)
    print(json.dumps(result, indent=2))
    bad = result['lost'] or result['crashes'] or result['answered_more_than_once']
    good = result['memory_flat'] and result['restored_after_kill'] and result['exit_code'] == 0
    return 0 if good and not bad else 1
