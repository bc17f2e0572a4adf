"""Stamps, names of frames and poses of messages; interpolation between poses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Float64
import numpy as np
from scipy.spatial.transform import Rotation

from mirage_model.messages.doubts import Doubts

MAX_DISTANCE = 10_000.0
"""Metres from the origin of a frame up to which float32 keeps a millimetre."""
UPWARDS, LEVEL_WAY = 0.94, 0.3
"""Height of the optical axis, of 1, that counts as straight up, and the way that it takes [m]."""
QUATERNION_TOLERANCE = 0.01
"""Deviation from length 1 up to which a quaternion is normalised and beyond which it is rejected.
"""


def seconds(stamp: Any) -> float:
    """Return a stamp in seconds, to a quarter of a microsecond for times since the epoch."""
    return stamp.sec + stamp.nanosec * 1e-9


def frame_name(name: str) -> str:
    """Return the name of a frame without the leading slash that tf of ROS 1 put there."""
    return name.removeprefix('/')


def matrix_from_pose(pose: Any, *, name: str = 'pose') -> Float64[np.ndarray, '4 4']:
    """Return the matrix of a geometry_msgs/Pose.

    Raises:
        ValueError: The pose is not finite, lies beyond `MAX_DISTANCE`, or its quaternion is not of
            length 1. The message begins with ``name``.
    """
    p, q = pose.position, pose.orientation
    return _matrices([(p.x, p.y, p.z, q.x, q.y, q.z, q.w)], [name])[0]


def matrices_from_poses(
    poses: Sequence[Any], *, name: str = 'poses'
) -> Float64[np.ndarray, 'n 4 4']:
    """Return the matrices of a list of geometry_msgs/Pose.

    Raises:
        ValueError: The list is empty, or a pose is rejected as by `matrix_from_pose`; its index is
        named.
    """
    if not poses:
        raise ValueError(f'{name}: empty')
    numbers = [
        (p.x, p.y, p.z, q.x, q.y, q.z, q.w)
        for p, q in ((pose.position, pose.orientation) for pose in poses)
    ]
    return _matrices(numbers, [f'{name}[{i}]' for i in range(len(poses))])


def matrices_from_positions(
    poses: Sequence[Any], *, name: str = 'poses'
) -> Float64[np.ndarray, 'n 4 4']:
    """Return the matrices of the positions of a list of geometry_msgs/Pose, without rotation.

    Raises:
        ValueError: As `matrices_from_poses`, but for orientations.
    """
    if not poses:
        raise ValueError(f'{name}: empty')
    numbers = [(p.position.x, p.position.y, p.position.z, 0.0, 0.0, 0.0, 1.0) for p in poses]
    return _matrices(numbers, [f'{name}[{i}]' for i in range(len(poses))])


def matrix_from_numbers(numbers: Sequence[float], *, name: str) -> Float64[np.ndarray, '4 4']:
    """Return the matrix of a mount in a configuration: x y z in metres, then a quaternion x y z w.

    Raises:
        ValueError: There are not 7 numbers, or the pose is rejected as by `matrix_from_pose`.
    """
    if len(numbers) != 7:
        raise ValueError(
            f'{name}: needs 7 numbers (x y z, quaternion x y z w), got {len(numbers)}'
        )
    return _matrices([tuple(numbers)], [name])[0]


def read_transform(message: Any) -> tuple[str, str, float, Float64[np.ndarray, '4 4']]:
    """Return parent, child, time and parent_from_child of a geometry_msgs/TransformStamped.

    Raises:
        ValueError: A frame has no name or both have the same, or the pose is rejected as by
        `matrix_from_pose`.
    """
    parent, child = frame_name(message.header.frame_id), frame_name(message.child_frame_id)
    if not parent or not child or parent == child:
        raise ValueError(f"transform of '{child}' in '{parent}': two different frames are needed")
    t, q = message.transform.translation, message.transform.rotation
    name = f"transform of '{child}' in '{parent}'"
    (matrix,) = _matrices([(t.x, t.y, t.z, q.x, q.y, q.z, q.w)], [name])
    return parent, child, seconds(message.header.stamp), matrix


def read_pose(
    message: Any, *, base_frame: str, name: str
) -> tuple[str, str, float, Float64[np.ndarray, '4 4']]:
    """Return parent, child, time and parent_from_child of a PoseStamped, PoseWithCovarianceStamped
    or Odometry.

    Args:
        base_frame: Child of a message that has no child_frame_id, or an empty one.
        name: Beginning of error messages, such as 'odometry'.

    Raises:
        ValueError: A frame has no name or both have the same, or the pose is rejected as by
        `matrix_from_pose`.
    """
    parent = frame_name(message.header.frame_id)
    child = frame_name(getattr(message, 'child_frame_id', '')) or frame_name(base_frame)
    if not parent or not child or parent == child:
        raise ValueError(
            f"{name}: pose of '{child}' in '{parent}': two different frames are needed"
        )
    pose = getattr(message.pose, 'pose', message.pose)
    return parent, child, seconds(message.header.stamp), matrix_from_pose(pose, name=name)


def check_optical(
    world_from_camera: Float[np.ndarray, 'n 4 4'], camera_frame: str, doubts: Doubts
) -> None:
    """Warn where all cameras of a level trajectory look straight up.

    So does a body frame (x forward, z up) that is used as an optical one (z forward, y down), as
    REP 103 defines both.
    """
    steps = np.diff(world_from_camera[:, :3, 3], axis=0)
    way = np.linalg.norm(steps, axis=1)
    axes = world_from_camera[:, :3, 2]
    along = np.abs((steps * axes[:-1]).sum(axis=1)).sum()
    if way.sum() > LEVEL_WAY and (axes[:, 2] > UPWARDS).all() and along < 0.3 * way.sum():
        doubts.warn(
            'body_frame',
            f"camera '{camera_frame}' looks straight up along {way.sum():.2f} m: its frame is "
            'taken as optical (REP 103: x right, y down, z forward) but seems to be a body frame '
            '(x forward); use the optical frame, or a base_from_camera with its rotation',
        )


def interpolate(
    first: Float[np.ndarray, 'n 4 4'],
    second: Float[np.ndarray, 'n 4 4'],
    fraction: Float[np.ndarray, 'n'],
) -> Float64[np.ndarray, 'n 4 4']:
    """Return poses between pairs of poses: positions linearly, rotations by slerp; ``fraction`` 0
    is the first, exactly."""
    result = np.array(first, np.float64)
    between = np.flatnonzero(fraction)
    if not len(between):
        return result
    first, second, fraction = result[between], second[between], fraction[between, None]
    start = Rotation.from_matrix(first[:, :3, :3])
    turn = (start.inv() * Rotation.from_matrix(second[:, :3, :3])).as_rotvec()
    result[between, :3, :3] = (start * Rotation.from_rotvec(turn * fraction)).as_matrix()
    result[between, :3, 3] = first[:, :3, 3] + (second[:, :3, 3] - first[:, :3, 3]) * fraction
    return result


def resample_trajectory(
    world_from_camera: Float[np.ndarray, 'n 4 4'],
    times: Float[np.ndarray, 'k'],
    at: Float[np.ndarray, 'm'],
) -> Float64[np.ndarray, 'm 4 4']:
    """Return a trajectory at other times, as by `interpolate`; it is held outside of its ends.

    Raises:
        ValueError: The trajectory is empty, n differs from k, times do not increase or are not
            finite, or a matrix is not rigid.
    """
    if len(times) == 0:
        raise ValueError('poses: empty, at least one is needed')
    if len(times) != len(world_from_camera):
        raise ValueError(
            f'times: {len(times)} for {len(world_from_camera)} poses, one per pose is needed'
        )
    wrong = ~np.isfinite(times) | (np.diff(times, prepend=-np.inf) <= 0)
    if wrong.any():
        index = int(wrong.argmax())
        raise ValueError(f'times[{index}]: {times[index]}, times must be finite and increase')
    if not np.isfinite(at).all():
        index = int((~np.isfinite(at)).argmax())
        raise ValueError(f'at[{index}]: {at[index]}, must be finite')
    _check_rigid(world_from_camera)
    at = np.clip(at, times[0], times[-1])
    after = np.searchsorted(times, at)
    before = np.where(times[after] == at, after, after - 1)
    span = np.where(after > before, times[after] - times[before], 1.0)
    fraction = (at - times[before]) / span
    return interpolate(world_from_camera[before], world_from_camera[after], fraction)


def _check_rigid(matrices: Float[np.ndarray, 'n 4 4'], *, tolerance: float = 1e-3) -> None:
    finite = np.isfinite(matrices).all(axis=(1, 2))
    rotation = np.where(finite[:, None, None], matrices, np.eye(4))[:, :3, :3].astype(np.float64)
    off = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max(axis=(1, 2))
    rigid = (off <= tolerance) & (np.linalg.det(rotation) > 0)
    rigid &= np.abs(matrices[:, 3] - [0, 0, 0, 1]).max(axis=1) <= tolerance
    for good, what in (
        (finite, 'transform has NaN or infinite entries'),
        (rigid, 'transform is not rigid'),
    ):
        if not good.all():
            index = int(good.argmin())
            raise ValueError(f'camera {index}: {what}: {matrices[index].tolist()}')


def _matrices(
    numbers: Sequence[tuple[float, ...]], names: Sequence[str]
) -> Float64[np.ndarray, 'n 4 4']:
    """Return the matrices of rows of x y z and a quaternion x y z w.

    Raises ValueError with the row's name.
    """
    rows = np.array(numbers, np.float64)
    positions, quaternions = rows[:, :3], rows[:, 3:]
    finite = np.asarray(np.isfinite(rows).all(axis=1))
    with np.errstate(over='ignore', invalid='ignore'):
        lengths = np.linalg.norm(quaternions, axis=1)
        near = np.asarray((np.abs(positions) <= MAX_DISTANCE).all(axis=1))
        good = finite & near & (np.abs(lengths - 1) <= QUATERNION_TOLERANCE)
    if not good.all():
        i = int(good.argmin())
        position, quaternion = positions[i].tolist(), quaternions[i].tolist()
        if not finite[i]:
            what = f'position {position} or orientation {quaternion} is not finite'
        elif not near[i]:
            what = (
                f'position {position} is further than {MAX_DISTANCE / 1000:g} km from the origin '
                'of its frame'
            )
        else:
            what = f'the quaternion has length {lengths[i]:.3g}, not 1'
        raise ValueError(f'{names[i]}: {what}')
    matrices = np.tile(np.eye(4), (len(rows), 1, 1))
    matrices[:, :3, :3] = Rotation.from_quat(quaternions).as_matrix()
    matrices[:, :3, 3] = positions
    return matrices
