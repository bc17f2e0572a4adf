"""Messages to arrays and the engine's dataclasses, and back. Pure functions; every edge of ROS is here.

Poses in messages become ``a_from_b`` matrices. Images become RGB, depths become metres. What cannot be taken as it
stands raises ValueError that names the field and the index.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, Transform
from jaxtyping import Float, Float64
from mirage.msg import ImaginedChunk, PlannedTrajectory
from nav_msgs.msg import Path
import numpy as np
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from transforms3d.quaternions import mat2quat

from mirage_model.interface import Chunk, Observation
from mirage_model.messages.sensors import intrinsics
from mirage_ros.images import (
    Compression,
    array_from_compressed,
    compressed_message,
    depth_from_image,
    image_array,
    image_message,
    rgb_from_image,
    size_of,
)

ENCODERS = ThreadPoolExecutor(thread_name_prefix='mirage-encoder')
"""Frames are compressed side by side."""
FURTHEST = 10_000.0
"""Metres from the world's origin; the library computes in float32, which keeps a millimetre up to here."""


# time


def seconds(stamp: Time) -> float:
    """Seconds since the epoch, to a quarter of a microsecond."""
    return stamp.sec + stamp.nanosec * 1e-9


def stamp(time: float) -> Time:
    """Raise ValueError for times that a message cannot hold."""
    if not _has_stamp(time):
        raise ValueError(f'time {time} s does not fit into a stamp')
    nanoseconds = round(time * 1e6) * 1000
    return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def _has_stamp(time: float) -> bool:
    return bool(0 <= time < 2**31 - 1e-6)


# poses


def matrix_from_pose(pose: Pose, *, name: str = 'pose') -> Float64[np.ndarray, '4 4']:
    """Raise ValueError, with ``name``, for NaN, beyond `FURTHEST`, and for quaternions not of unit length (within 1%)."""
    return _matrices([pose], [name])[0]


def _matrices(poses: Sequence[Pose], names: Sequence[str]) -> Float64[np.ndarray, 'n 4 4']:
    positions = np.array([(p.x, p.y, p.z) for p in (pose.position for pose in poses)])
    quaternions = np.array([(o.x, o.y, o.z, o.w) for o in (pose.orientation for pose in poses)])
    finite = np.isfinite(positions).all(axis=1) & np.isfinite(quaternions).all(axis=1)
    with np.errstate(over='ignore', invalid='ignore'):
        lengths = np.linalg.norm(quaternions, axis=1)
        near = (np.abs(positions) <= FURTHEST).all(axis=1)
        good = finite & near & (np.abs(lengths - 1) <= 0.01)
    if not good.all():
        i = int(good.argmin())
        position, quaternion = positions[i].tolist(), quaternions[i].tolist()
        if not finite[i]:
            what = f'position {position} or orientation {quaternion} is not finite'
        elif not near[i]:
            what = f'position {position} is further than {FURTHEST / 1000:g} km from the origin of its frame'
        else:
            what = f'the quaternion has length {lengths[i]:.3g}, not 1'
        raise ValueError(f'{names[i]}: {what}')
    matrices = np.tile(np.eye(4), (len(poses), 1, 1))
    matrices[:, :3, :3] = Rotation.from_quat(quaternions).as_matrix()
    matrices[:, :3, 3] = positions
    return matrices


def matrix_from_transform(
    transform: Transform, *, name: str = 'transform'
) -> Float64[np.ndarray, '4 4']:
    """As `matrix_from_pose`."""
    t = transform.translation
    return matrix_from_pose(
        Pose(position=Point(x=t.x, y=t.y, z=t.z), orientation=transform.rotation), name=name
    )


def matrices_from_poses(
    poses: Sequence[Pose], *, name: str = 'poses'
) -> Float64[np.ndarray, 'n 4 4']:
    """Raise ValueError for no poses at all, and for a bad one, by its index."""
    if not poses:
        raise ValueError(f'{name}: empty')
    return _matrices(poses, [f'{name}[{i}]' for i in range(len(poses))])


def pose_from_matrix(matrix: Float[np.ndarray, '4 4']) -> Pose:
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = map(float, matrix[:3, 3])
    w, x, y, z = map(float, mat2quat(np.asarray(matrix[:3, :3], np.float64)))
    pose.orientation.w, pose.orientation.x, pose.orientation.y, pose.orientation.z = w, x, y, z
    return pose


def matrix_from_numbers(numbers: Sequence[float], *, name: str) -> Float64[np.ndarray, '4 4']:
    """From x y z in metres and a quaternion x y z w, as parameters hold it."""
    if len(numbers) != 7:
        raise ValueError(
            f'{name}: needs 7 numbers (x y z, quaternion x y z w), got {len(numbers)}'
        )
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = numbers[:3]
    o = pose.orientation
    o.x, o.y, o.z, o.w = numbers[3:]
    return matrix_from_pose(pose, name=name)


# paths


@dataclass(frozen=True, kw_only=True)
class PlannedPath:
    """A path as a planner sent it, in the poses of the frame that it moves.

    They are in ``frame`` as it was at ``frame_time``, None being the newest that is known of it. ``frame_from_seed``
    is where the moving frame was when the seed image was taken, None where that is not said.
    """

    request_id: str
    frame: str
    moving_frame: str
    frame_from_moving: Float64[np.ndarray, 'n 4 4']
    times: Float64[np.ndarray, ' n']
    client: str = ''
    frame_time: float | None = None
    frame_from_seed: Float64[np.ndarray, '4 4'] | None = None
    camera_info: CameraInfo | None = None


def planned_from_trajectory(message: PlannedTrajectory, *, max_poses: int) -> PlannedPath:
    _check_length(len(message.poses), max_poses)
    if len(message.poses) != len(message.times):
        raise ValueError(f'{len(message.poses)} poses but {len(message.times)} times')
    times = np.array([seconds(time) for time in message.times])
    _check_times(times, 'times')
    seed = message.seed_pose
    return PlannedPath(
        request_id=message.request_id,
        client=message.client,
        frame=message.header.frame_id,
        frame_time=_time_or_newest(message.header.stamp),
        moving_frame=message.moving_frame,
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
) -> PlannedPath:
    """Unstamped poses, all of one stamp or none, are timed from the header's stamp on.

    Every step then takes as long as its way at ``speed`` (m/s) or its turn at ``turn_rate`` (rad/s), whichever is
    longer; poses that move neither way are left out.
    """
    _check_length(len(message.poses), max_poses)
    for i, pose in enumerate(message.poses):
        if pose.header.frame_id not in ('', message.header.frame_id):
            raise ValueError(
                f"poses[{i}]: in frame '{pose.header.frame_id}', the path in '{message.header.frame_id}'"
            )
    frame_from_moving = matrices_from_poses([pose.pose for pose in message.poses])
    times = np.array([seconds(pose.header.stamp) for pose in message.poses])
    if len(times) > 1 and (times == times[0]).all():
        steps = _step_seconds(frame_from_moving, speed, turn_rate)
        moves = np.concatenate([[True], steps > 0])
        start = seconds(message.header.stamp)
        times = start + np.concatenate([[0.0], np.cumsum(steps)])[moves]
        frame_from_moving = frame_from_moving[moves]
    _check_times(times, 'poses')
    return PlannedPath(
        request_id=request_id,
        frame=message.header.frame_id,
        frame_time=_time_or_newest(message.header.stamp),
        moving_frame=moving_frame,
        frame_from_moving=frame_from_moving,
        times=times,
    )


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
        raise ValueError(f'{count} poses, limits.max_poses is {max_poses}')


def _check_times(times: Float64[np.ndarray, ' n'], name: str) -> None:
    for i, time in enumerate(times.tolist()):
        if not _has_stamp(time):
            raise ValueError(f'{name}[{i}]: time {time} s does not fit into a stamp')
    backward = np.flatnonzero(np.diff(times) <= 0)
    if len(backward):
        i = int(backward[0]) + 1
        raise ValueError(f'{name}[{i}]: time {times[i]:.3f} is not after {times[i - 1]:.3f}')


# what a camera sends


def K_from_camera_info(message: CameraInfo) -> Float64[np.ndarray, '3 3']:
    """As `intrinsics`, its ValueError with the message's name."""
    try:
        return intrinsics(message)
    except ValueError as error:
        raise ValueError(f'camera_info: {error}') from None


def check_same_camera(given: CameraInfo, used: CameraInfo) -> None:
    """Raise ValueError where a request names another camera than the one whose image it starts from."""
    same = (given.height, given.width, given.header.frame_id) == (
        used.height,
        used.width,
        used.header.frame_id,
    )
    if not same or not np.allclose(K_from_camera_info(given), K_from_camera_info(used), rtol=1e-3):
        raise ValueError(
            f"the request's camera_info ('{given.header.frame_id}', {given.height}x{given.width}) is not that of the "
            f"seed image ('{used.header.frame_id}', {used.height}x{used.width}): frames are imagined with the seed's"
        )


def view_from_messages(
    image: Image | CompressedImage,
    camera_info: CameraInfo,
    depth: Image | CompressedImage | None,
    *,
    world_from_camera: Float64[np.ndarray, '4 4'],
    max_pixels: int,
) -> Observation:
    """Raise ValueError where the three do not belong together or are larger than ``max_pixels``."""
    frames = image.header.frame_id, camera_info.header.frame_id
    if not frames[0] or frames[0] != frames[1]:
        raise ValueError(f"image is in frame '{frames[0]}', its camera_info in '{frames[1]}'")
    K = K_from_camera_info(camera_info)
    size = size_of(image, 'image', max_pixels=max_pixels)
    if (camera_info.height, camera_info.width) != size:
        raise ValueError(
            f'camera_info is of {camera_info.height}x{camera_info.width}, the image {size[0]}x{size[1]}'
        )
    if depth is not None:
        of_depth = size_of(depth, 'depth', max_pixels=max_pixels)
        if of_depth != size:
            raise ValueError(
                f'depth is {of_depth[0]}x{of_depth[1]}, the image {size[0]}x{size[1]}: it must be registered to it'
            )
    return Observation(
        image=rgb_from_image(image),
        K=K,
        world_from_camera=world_from_camera,
        time=seconds(image.header.stamp),
        depth=None if depth is None else depth_from_image(depth),
    )


# what was imagined


def camera_info_message(
    K: Float[np.ndarray, '3 3'], height: int, width: int, header: Header
) -> CameraInfo:
    k = np.asarray(K, np.float64)
    return CameraInfo(
        header=header,
        height=height,
        width=width,
        distortion_model='plumb_bob',
        d=[0.0] * 5,
        k=k.ravel(),
        r=np.eye(3).ravel(),
        p=np.hstack([k, np.zeros((3, 1))]).ravel(),
    )


def raw_bytes_of(chunk: Chunk) -> int:
    """Of its pictures."""
    arrays = [chunk.frames, chunk.visibility, chunk.memory_frames]
    return sum(a.nbytes for a in arrays if a is not None)


def chosen_compression(wanted: str, nbytes: int, *, raw_bytes: int) -> Compression:
    """What 'auto' stands for: jpeg where pictures of ``nbytes`` are larger than ``raw_bytes``."""
    if wanted != 'auto':
        return wanted
    return 'jpeg' if nbytes > raw_bytes else 'none'


def picture_bytes(message: ImaginedChunk) -> int:
    """Of all its pictures, as they are sent."""
    arrays = (message.frames, message.visibility, message.memory_frames)
    packed = (
        message.frames_compressed,
        message.visibility_compressed,
        message.memory_frames_compressed,
    )
    return sum(len(image.data) for images in (*arrays, *packed) for image in images)


def message_from_chunk(
    chunk: Chunk,
    *,
    world_frame: str,
    frame_id: str,
    sha256: str,
    compression: Compression = 'none',
    quality: int = 90,
    max_bytes: int = 2**31 - 1,
) -> ImaginedChunk:
    """Masks are compressed without loss whenever frames are compressed.

    Raise ValueError for a message with more than ``max_bytes`` of pictures.
    """
    n, height, width = chunk.visibility.shape
    headers = [Header(stamp=stamp(time), frame_id=frame_id) for time in chunk.times]
    message = ImaginedChunk(
        header=headers[0],
        request_id=chunk.request_id,
        index=chunk.index,
        count=chunk.count,
        times=[header.stamp for header in headers],
        world_frame=world_frame,
        poses=[
            pose_from_matrix(world_from_camera) for world_from_camera in chunk.world_from_camera
        ],
        camera_info=camera_info_message(K_of_each(chunk)[0], height, width, headers[0]),
        visible=array('f', chunk.visible),
        observed=array('f', chunk.observed),
        model=chunk.model,
        model_sha256=sha256,
        depth_source=chunk.depth_source,
        seed=chunk.seed,
        seconds=float(chunk.seconds),
    )
    for name, arrays, encoding in (
        ('frames', chunk.frames, 'rgb8'),
        ('visibility', chunk.visibility, 'mono8'),
        ('memory_frames', chunk.memory_frames, 'rgb8'),
    ):
        if arrays is None:
            continue
        if compression == 'none':
            images = [image_message(a, encoding, h) for a, h in zip(arrays, headers)]
            setattr(message, name, images)
        else:
            lossless = 'png' if encoding == 'mono8' else compression
            images = list(
                ENCODERS.map(
                    compressed_message, arrays, repeat(lossless), repeat(quality), headers
                )
            )
            setattr(message, f'{name}_compressed', images)
    size = picture_bytes(message)
    if size > max_bytes:
        raise ValueError(
            f'chunk {chunk.index} of {n} frames of {height}x{width} takes {size / 2**20:.1f} MiB ({compression}), '
            f'limits.max_message_bytes allows {max_bytes / 2**20:.1f}: choose jpeg, or a lower quality'
        )
    return message


def K_of_each(chunk: Chunk) -> Float[np.ndarray, 'n 3 3']:
    """Intrinsics for every frame, where the engine gives them once for all."""
    return np.broadcast_to(chunk.K, (len(chunk.frames), 3, 3))


def chunk_from_message(message: ImaginedChunk) -> Chunk:
    """What a client gets back; exact where the message is not compressed."""
    frames = _pictures(message, 'frames', 'rgb8')
    assert frames is not None
    return Chunk(
        request_id=message.request_id,
        index=message.index,
        count=message.count,
        frames=frames,
        visibility=_pictures(message, 'visibility', 'mono8'),
        visible=np.array(message.visible, np.float32),
        observed=np.array(message.observed, np.float32),
        K=K_from_camera_info(message.camera_info).astype(np.float32),
        world_from_camera=matrices_from_poses(message.poses).astype(np.float32),
        times=np.array([seconds(time) for time in message.times]),
        memory_frames=_pictures(message, 'memory_frames', 'rgb8'),
        depth_source=message.depth_source,
        model=message.model,
        seed=message.seed,
        seconds=message.seconds,
    )


def _pictures(message: ImaginedChunk, name: str, encoding: str) -> np.ndarray | None:
    raw, compressed = getattr(message, name), getattr(message, f'{name}_compressed')
    if raw:
        return np.stack([image_array(image, encoding) for image in raw])
    if compressed:
        return np.stack([array_from_compressed(image) for image in compressed])
    return None
