"""A node in a process of its own, and the client that talks to it over DDS."""

from __future__ import annotations

from array import array
import glob
import multiprocessing
import os
from pathlib import Path
import runpy
import signal
import subprocess
import sys
import time
from typing import Any

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose
from mirage.msg import PlannedTrajectory
import numpy as np
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mirage_ros.tools.fake_robot import CAMERA, FakeRobot

INSTANT = [sys.executable, str(Path(__file__).resolve().parents[1] / 'instant_engine.py')]
"""The node with the instant engine, as a program."""

START = 2_000_000_000.0
"""The planned time of a path's first pose: the future."""


def shared_memory(*, unused: bool = False) -> set[str]:
    """Return the files of DDS and of the simulator in /dev/shm, or those no process has mapped."""
    names = {path for path in glob.glob('/dev/shm/*') if 'fastrtps' in path or 'ViZDoom' in path}
    used = ''.join(map(_text, Path('/proc').glob('[0-9]*/maps'))) if unused else ''
    return {name for name in names if _segment(name) not in used}


def _segment(path: str) -> str:
    """Return the segment that a lock or a semaphore goes with: these are not mapped for long."""
    return Path(path).name.removeprefix('sem.').removesuffix('_mutex').removesuffix('_el')


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ''


FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(['mirage_ros.node'])


class Forked:
    """A node with the engine of a module here, forked from a process that has imported the node.

    Its verbs are those of `subprocess.Popen`.
    """

    def __init__(self, engine: str, arguments: list[str], environment: dict[str, str], log: Path):
        self._process = FORKS.Process(
            target=_run, args=(engine, arguments, environment, log), daemon=True
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired('the node', timeout)
        return self.returncode


def _run(engine: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(environment)
    sys.argv = [engine, *arguments]
    runpy.run_module(engine, run_name='__main__')


class NodeProcess:
    """A node in a process, with the engine of a module here or as ``program``; its output goes to
    a file."""

    def __init__(
        self,
        log: Path,
        *,
        engine: str = 'instant_engine',
        program: list[str] | None = None,
        instant: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        ready: str = 'is ready',
        remappings: dict[str, str] | None = None,
        **parameters: Any,
    ):
        self.log = log
        arguments = ['--ros-args'] if parameters or remappings else []
        for topic, name in (remappings or {}).items():
            arguments += ['-r', f'{topic}:={name}']
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            arguments += ['-p', f'{name.replace("__", ".")}:={text}']
        instant_environment = {
            f'INSTANT_{name.upper()}': str(value) for name, value in (instant or {}).items()
        }
        whole = {**os.environ, **instant_environment, **(environment or {})}
        with log.open('wb') as out:
            if program is None:
                self.process = Forked(engine, arguments, whole, log)
            else:
                self.process = subprocess.Popen(
                    [*program, *arguments], stdout=out, stderr=subprocess.STDOUT, env=whole
                )
        self.wait_for(ready)

    def says(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, seconds: float = 180.0) -> None:
        """Wait for a text in the node's output. Raises an error with the output at its end or
        after the time."""
        deadline = time.monotonic() + seconds
        while text not in self.says():
            assert self.process.poll() is None, (
                f'the node ended with {self.process.returncode}: {self.says()}'
            )
            assert time.monotonic() < deadline, f'the node did not say {text!r}: {self.says()}'
            time.sleep(0.02)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        assert code == 0, f'the node ended with {code}: {self.says()}'


class Client(FakeRobot):
    """A planner with a camera, in the tests' process."""

    def __init__(self) -> None:
        super().__init__('client', topics={**CAMERA, 'trajectory': PlannedTrajectory})

    def send_seed(self, *, depth: bool = True, **seed: Any) -> None:
        """Send a camera's messages a few times, as its topics are best effort."""
        image, camera_info, depth_image = seed_messages(**seed)
        for _ in range(5):
            self.send('image', image)
            self.send('camera_info', camera_info)
            if depth:
                self.send('depth', depth_image)
            time.sleep(0.1)


def seed_messages(
    *,
    height: int = 96,
    width: int = 160,
    value: int = 40,
    stamp: int = 1,
    frame_id: str = 'camera',
    distance: float = 3.0,
) -> tuple[Image, CameraInfo, Image]:
    header = Header(frame_id=frame_id, stamp=Time(sec=stamp))
    pixels = np.full((height, width, 3), value, np.uint8)
    depths = np.full((height, width), distance, np.float32)
    k = [80.0, 0.0, (width - 1) / 2, 0.0, 80.0, (height - 1) / 2, 0.0, 0.0, 1.0]
    return (
        Image(
            header=header,
            height=height,
            width=width,
            encoding='rgb8',
            step=width * 3,
            data=array('B', pixels.tobytes()),
        ),
        CameraInfo(header=header, height=height, width=width, distortion_model='plumb_bob', k=k),
        Image(
            header=header,
            height=height,
            width=width,
            encoding='32FC1',
            step=width * 4,
            data=array('B', depths.tobytes()),
        ),
    )


def trajectory(
    frames: int = 32,
    *,
    request_id: str = '',
    frame_id: str = 'map',
    moving_frame: str = 'camera',
    step: float = 0.05,
) -> PlannedTrajectory:
    """Return a trajectory along x, of ``frames`` frames at 8 Hz after the first pose."""
    message = PlannedTrajectory(request_id=request_id, moving_frame=moving_frame)
    message.header.frame_id = frame_id
    for k in range(frames + 1):
        pose = Pose()
        pose.position.x = step * k
        message.poses.append(pose)
        message.times.append(Time(sec=int(START) + k // 8, nanosec=k % 8 * 125_000_000))
    return message
