"""Planned paths from messages, and the cameras along them in the world at the frame rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math

from builtin_interfaces.msg import Time
from jaxtyping import Float64
from mirage.msg import PlannedTrajectory
from nav_msgs.msg import Path
import numpy as np
from sensor_msgs.msg import CameraInfo

from mirage_model.interface import Trajectory
from mirage_model.messages.camera_info import RectifiedCamera
from mirage_model.messages.depth_registration import DepthCamera
from mirage_model.messages.doubts import Doubts
from mirage_model.messages.path_orientation import Orientation, read_path
from mirage_model.messages.poses import (
    frame_name,
    matrices_from_poses,
    matrix_from_numbers,
    matrix_from_pose,
    resample_trajectory,
    seconds,
)
from mirage_model.messages.transform_tree import MAX_FRAMES, TransformTree
from mirage_ros.convert import AnyImage, fits_stamp
from mirage_ros.parameters import NodeParameters

STAMP_ERROR = 2e-6
"""Largest error of a time that went through a stamp [s]: stamps hold microseconds, a float of
today's date quarters."""
TOO_FAST = 10.0
"""Multiple of ``path.speed`` at which stamps are no longer taken for the times of a path."""


@dataclass(frozen=True, kw_only=True)
class PlannedPath:
    """A path as a planner sent it."""

    request_id: str
    frame: str
    """Frame of the poses."""
    moving_frame: str
    """Frame whose poses these are; '' is the camera's optical frame."""
    frame_from_moving: Float64[np.ndarray, 'n 4 4']
    times: Float64[np.ndarray, ' n']
    """Times of the poses [s]."""
    client: str = ''
    frame_time: float | None = None
    """Time at which ``frame`` is looked up [s]; None for the newest transform."""
    frame_from_seed: Float64[np.ndarray, '4 4'] | None = None
    """Pose of the moving frame when the seed image was taken; None if the message has none."""
    camera_info: CameraInfo | None = None
    """Camera that the planner expects; None if the message has none."""


def planned_from_trajectory(message: PlannedTrajectory, *, max_poses: int) -> PlannedPath:
    """Return the path of a PlannedTrajectory.

    Raises ValueError that names the field and the index.
    """
    _check_length(len(message.poses), max_poses)
    if len(message.poses) != len(message.times):
        raise ValueError(
            f'times: {len(message.times)} for {len(message.poses)} poses, one per pose is needed'
        )
    times = np.array([seconds(time) for time in message.times])
    _check_times(times, 'times')
    seed = message.seed_pose
    return PlannedPath(
        request_id=message.request_id,
        client=message.client,
        frame=frame_name(message.header.frame_id),
        frame_time=_time_or_newest(message.header.stamp),
        moving_frame=frame_name(message.moving_frame),
        frame_from_moving=matrices_from_poses(message.poses),
        times=times,
        frame_from_seed=matrix_from_pose(seed[0], name='seed_pose') if seed else None,
        camera_info=message.camera_info[0] if message.camera_info else None,
    )


def planned_from_path(
    message: Path,
    *,
    request_id: str,
    moving_frame: str,
    speed: float,
    turn_rate: float,
    max_poses: int,
    warn: Callable[[str], None],
    orientation: Orientation,
    doubts: Doubts,
) -> PlannedPath:
    """Return the path of a nav_msgs/Path, with times where its poses have none.

    Poses that all have one stamp, or none, are timed from the header's stamp on: every step takes
    its distance at ``speed`` [m/s] or its angle at ``turn_rate`` [rad/s], whichever takes longer.
    Repeated poses are left out. Stamps within which no robot covers the path, `TOO_FAST` times as
    fast, are those of a planner that made the poses: they are taken as none, with a warning.

    Raises:
        ValueError: There are more than ``max_poses``, or a pose cannot be used; its index is
        named.
    """
    _check_length(len(message.poses), max_poses)
    for i, pose in enumerate(message.poses):
        if frame_name(pose.header.frame_id) not in ('', frame_name(message.header.frame_id)):
            raise ValueError(
                f"poses[{i}]: in frame '{pose.header.frame_id}', must be in that of the path, "
                f"'{message.header.frame_id}'"
            )
    frame_from_moving = read_path(
        [pose.pose for pose in message.poses], orientation=orientation, doubts=doubts
    )
    times = np.array([seconds(pose.header.stamp) for pose in message.poses])
    steps = _step_seconds(frame_from_moving, speed, turn_rate)
    if len(times) > 1 and not _are_times(times, steps, warn):
        moves = np.concatenate([[True], steps > 0])
        start = seconds(message.header.stamp)
        times = start + np.concatenate([[0.0], np.cumsum(steps)])[moves]
        frame_from_moving = frame_from_moving[moves]
    _check_times(times, 'poses')
    return PlannedPath(
        request_id=request_id,
        frame=frame_name(message.header.frame_id),
        frame_time=_time_or_newest(message.header.stamp),
        moving_frame=moving_frame,
        frame_from_moving=frame_from_moving,
        times=times,
    )


def _are_times(
    stamps: Float64[np.ndarray, ' n'],
    steps: Float64[np.ndarray, ' n-1'],
    warn: Callable[[str], None],
) -> bool:
    """Return whether stamps are times, of a path whose steps take ``steps`` at its speed [s]."""
    if (stamps == stamps[0]).all():
        return False
    # a planner may leave the stamp of its request to the goal
    spans = [np.ptp(stamps), np.ptp(stamps[:-1])] if len(stamps) > 2 else [np.ptp(stamps)]
    if min(spans) * TOO_FAST >= steps.sum():
        return True
    warn(
        f'path: the stamps of {len(stamps)} poses lie within {min(spans):.6f} s, at path.speed '
        f'they take {steps.sum():.3f} s: these stamps are no times, so path.speed times the poses'
    )
    return False


def _time_or_newest(stamp: Time) -> float | None:
    return seconds(stamp) or None


def _step_seconds(
    frame_from_moving: Float64[np.ndarray, 'n 4 4'], speed: float, turn_rate: float
) -> Float64[np.ndarray, ' n-1']:
    way = np.linalg.norm(np.diff(frame_from_moving[:, :3, 3], axis=0), axis=1)
    rotation = frame_from_moving[:, :3, :3]
    next_from_this = rotation[1:].transpose(0, 2, 1) @ rotation[:-1]
    cosine = (np.trace(next_from_this, axis1=1, axis2=2) - 1) / 2
    steps = np.maximum(way / speed, np.arccos(np.clip(cosine, -1, 1)) / turn_rate)
    return np.where(steps < 1e-5, 0.0, steps)  # a stamp keeps microseconds


def _check_length(count: int, max_poses: int) -> None:
    if count > max_poses:
        raise ValueError(f'poses: {count}, limits.max_poses is {max_poses}')


def _check_times(times: Float64[np.ndarray, ' n'], name: str) -> None:
    for i, time in enumerate(times.tolist()):
        if not fits_stamp(time):
            raise ValueError(f'{name}[{i}]: time {time} s, a stamp holds 0 to 2^31 s')
    backward = np.flatnonzero(np.diff(times) <= 0)
    if len(backward):
        i = int(backward[0]) + 1
        raise ValueError(
            f'{name}[{i}]: time {times[i]:.6f} is not after {times[i - 1]:.6f}, the stamps of a '
            'timed path must increase'
        )


class CameraFrames:
    """Poses of the camera from parameters and transforms.

    A ValueError names both frames and the times of the known transforms.
    """

    def __init__(self, parameters: NodeParameters, transforms: TransformTree):
        frames = parameters.frames
        self._world, self._base = frame_name(frames.world), frame_name(frames.base)
        self._odom = frame_name(frames.odom)
        self._wait = parameters.tf.wait
        self._pose_source = parameters.observe.pose_source
        self._max_gap = parameters.tf.max_gap
        self._transforms = transforms
        self._cameras: dict[str, RectifiedCamera] = {}
        self._depth_cameras: dict[str, RectifiedCamera] = {}
        self._base_from_camera = (
            matrix_from_numbers(frames.base_from_camera, name='frames.base_from_camera')
            if frames.base_from_camera
            else None
        )

    def set_camera(self, camera: RectifiedCamera) -> None:
        """Take the camera of the images, which may lie beside its frame (stereo)."""
        _set(self._cameras, camera)

    def set_depth_camera(self, camera: RectifiedCamera) -> None:
        """Take the camera of the depth images, to register depth that is not registered."""
        _set(self._depth_cameras, camera)

    def depth_camera(self, depth: AnyImage | None, camera: RectifiedCamera) -> DepthCamera | None:
        """Return the camera of a depth image in the camera of the image; None where no camera_info
        of the depth came.

        Raises ValueError where no transform joins the two.
        """
        if depth is None:
            return None
        own = self._depth_cameras.get(frame_name(depth.header.frame_id))
        if own is None:
            return None
        image_from_depth = np.eye(4)
        if own.frame != camera.frame:
            time = seconds(depth.header.stamp)
            image_from_depth = self._lookup(camera.frame, own.frame, time)
        camera_from_frame = np.linalg.inv(camera.frame_from_camera)
        return DepthCamera(
            frame=own.frame,
            K=own.K,
            size=own.size,
            image_from_depth=camera_from_frame @ image_from_depth @ own.frame_from_camera,
        )

    def _lookup(self, target: str, source: str, time: float | None) -> Float64[np.ndarray, '4 4']:
        return self._transforms.lookup(
            target, source, time, wait=self._wait, max_gap=self._max_gap
        )

    def _frame_from_camera(self, frame: str) -> Float64[np.ndarray, '4 4']:
        """Return the pose of a camera in its frame: a baseline for the second of a stereo pair."""
        camera = self._cameras.get(frame)
        return np.eye(4) if camera is None else camera.frame_from_camera

    def world_from(self, frame: str, time: float | None) -> Float64[np.ndarray, '4 4']:
        """Return the pose of a frame in the world at a time, or the newest for None.

        Raises ValueError if it is unknown.
        """
        world = self._world
        if frame == world:
            return np.eye(4)
        if not frame:
            raise ValueError(f"header.frame_id: is '', name a frame that TF connects to '{world}'")
        return self._lookup(world, frame, time)

    def moving_from_camera(
        self, moving: str, camera: str, time: float | None
    ) -> Float64[np.ndarray, '4 4']:
        """Return the pose of the camera in the moving frame.

        Raises ValueError if it is unknown.
        """
        camera = frame_name(camera)
        return self._moving_from_frame(moving, camera, time) @ self._frame_from_camera(camera)

    def _moving_from_frame(
        self, moving: str, camera: str, time: float | None
    ) -> Float64[np.ndarray, '4 4']:
        if moving in ('', camera):
            return np.eye(4)
        if moving == self._base and self._base_from_camera is not None:
            return self._base_from_camera
        if not camera:
            raise ValueError(
                'camera_info: none was received, so the frame of the camera is unknown'
            )
        try:
            return self._lookup(moving, camera, time)
        except ValueError as error:
            raise ValueError(
                f"moving_frame: the pose of the camera '{camera}' in '{moving}' is unknown, "
                f"publish it, or set frames.base_from_camera for '{self._base}': {error}"
            ) from None

    def world_from_camera(self, camera: str, time: float) -> Float64[np.ndarray, '4 4']:
        """Return the pose of the camera at a time.

        Raises ValueError if it is unknown or there is no pose source.
        """
        if self._pose_source == 'none':
            raise ValueError(
                'observe.pose_source: none, so the pose of the camera is unknown, set a source'
            )
        world, camera = self._world, frame_name(camera)
        if self._base_from_camera is None:
            world_from_frame = self._lookup(world, camera, time)
        else:
            world_from_frame = self._lookup(world, self._base, time) @ self._base_from_camera
        return world_from_frame @ self._frame_from_camera(camera)

    def world_from_odom(self, time: float) -> Float64[np.ndarray, '4 4'] | None:
        """Return the pose of the odometry frame in the world, or None if it is unknown at that
        time."""
        try:
            return self._transforms.lookup(self._world, self._odom, time)
        except ValueError:
            return None


def _set(cameras: dict[str, RectifiedCamera], camera: RectifiedCamera) -> None:
    if camera.frame in cameras or len(cameras) < MAX_FRAMES:
        cameras[camera.frame] = camera


def frames_along(
    world_from_camera: Float64[np.ndarray, 'n 4 4'],
    times: Float64[np.ndarray, ' n'],
    *,
    skip_first: bool,
    frame_rate: float,
    max_frames: int,
) -> Trajectory:
    """Resample a path to the frame rate: frame k is at times[0] + k / frame_rate.

    Args:
        skip_first: Begin with k = 1, because the first pose is that of the image that the path
        starts from.
        frame_rate: Frames per second.

    Raises:
        ValueError: The path is shorter than one frame or longer than ``max_frames``, or
            `resample_trajectory` rejects it.
    """
    if len(times) == 0:
        raise ValueError('poses: empty, at least one is needed')
    first = 1 if skip_first else 0
    # a path of exactly n frames must give n
    last = math.floor((times[-1] - times[0] + STAMP_ERROR) * frame_rate + 1e-4)
    count = last - first + 1
    if count < 1:
        raise ValueError(
            f'times: the path takes {times[-1] - times[0]:.3f} s, less than one frame at '
            f'{frame_rate:g} Hz'
        )
    if count > max_frames:
        raise ValueError(
            f'times: the path takes {count} frames at {frame_rate:g} Hz, limits.max_frames is '
            f'{max_frames}'
        )
    frame_times = times[0] + np.arange(first, first + count) / frame_rate
    # a pose that was sent for a frame is used as it is, although its stamp was rounded
    nearest = times[np.searchsorted(times, frame_times - STAMP_ERROR).clip(max=len(times) - 1)]
    at = np.where(np.abs(nearest - frame_times) <= STAMP_ERROR, nearest, frame_times)
    return Trajectory(
        world_from_camera=resample_trajectory(world_from_camera, times, at), times=frame_times
    )
