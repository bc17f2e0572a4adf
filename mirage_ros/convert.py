"""ROS messages from arrays and the engine's dataclasses, and those from messages.

Images, camera_info, stamps and poses are read by `mirage_model.messages`, as those of a bag are.
What cannot be taken as it stands raises ValueError that names the field and the index.
"""

from __future__ import annotations

from array import array
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Literal, TypeAlias, cast

from builtin_interfaces.msg import Time
import cv2
from geometry_msgs.msg import Pose, TransformStamped
from jaxtyping import Float, Float64, Shaped, UInt8
from mirage.msg import ImaginedChunk
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from transforms3d.quaternions import mat2quat

from mirage_model.interface import Chunk, Observation
from mirage_model.messages.camera_info import (
    K_from_camera_info,
    image_size_from_camera_info,
    read_camera,
    read_depth,
    read_image,
)
from mirage_model.messages.depth_registration import DepthCamera
from mirage_model.messages.doubts import Doubts
from mirage_model.messages.images import rgb_from_image
from mirage_model.messages.poses import (
    frame_name,
    matrices_from_poses,
    seconds,
)

AnyImage: TypeAlias = Image | CompressedImage
Compression = Literal['none', 'jpeg', 'png']
"""Formats of the images of a chunk."""

ENCODERS = ThreadPoolExecutor(thread_name_prefix='mirage-encoder')
"""Threads that compress frames side by side."""


# time


def stamp(time: float) -> Time:
    """Return a time in seconds as a stamp, rounded to microseconds.

    Raises ValueError where it does not fit.
    """
    if not fits_stamp(time):
        raise ValueError(f'time: {time} s, a stamp holds 0 to 2^31 s')
    nanoseconds = round(time * 1e6) * 1000
    return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def fits_stamp(time: float) -> bool:
    """Return whether a time in seconds fits into a stamp."""
    return bool(0 <= time < 2**31 - 1e-6)


# poses


def pose_from_matrix(matrix: Float[np.ndarray, '4 4']) -> Pose:
    """Return the pose of a rigid transform."""
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = map(float, matrix[:3, 3])
    w, x, y, z = map(float, mat2quat(np.asarray(matrix[:3, :3], np.float64)))
    pose.orientation.w, pose.orientation.x, pose.orientation.y, pose.orientation.z = w, x, y, z
    return pose


def transform_message(
    parent: str, child: str, parent_from_child: Float[np.ndarray, '4 4'], time: float
) -> TransformStamped:
    """Return a transform at a time in seconds."""
    pose = pose_from_matrix(parent_from_child)
    message = TransformStamped(
        header=Header(frame_id=parent, stamp=stamp(time)), child_frame_id=child
    )
    at = message.transform.translation
    at.x, at.y, at.z = pose.position.x, pose.position.y, pose.position.z
    message.transform.rotation = pose.orientation
    return message


# observations


def check_same_camera(given: CameraInfo, used: CameraInfo) -> None:
    """Raise ValueError where a request names another camera than the one whose image it starts
    from."""
    sizes = [image_size_from_camera_info(message) for message in (given, used)]
    same = sizes[0] == sizes[1]
    same &= frame_name(given.header.frame_id) == frame_name(used.header.frame_id)
    if not same or not np.allclose(K_from_camera_info(given), K_from_camera_info(used), rtol=1e-3):
        of_request, of_seed = (
            f"'{message.header.frame_id}', {height}x{width}"
            for message, (height, width) in zip((given, used), sizes)
        )
        raise ValueError(
            f'camera_info: {of_request}, must equal that of the seed image, {of_seed}'
        )


def observation_from_messages(
    image: AnyImage,
    camera_info: CameraInfo,
    depth: AnyImage | None,
    *,
    world_from_camera: Float64[np.ndarray, '4 4'],
    max_pixels: int,
    doubts: Doubts,
    depth_camera: DepthCamera | None = None,
) -> Observation:
    """Return an observation for the engine.

    Args:
        depth_camera: Camera of depth that is not registered to the image; None where it is.

    Raises:
        ValueError: A message cannot be read, they do not belong together, or an image has more
        than ``max_pixels``.
    """
    camera = read_camera(camera_info, doubts)
    return Observation(
        image=read_image(
            image, camera_frame=camera.frame, size=camera.size, max_pixels=max_pixels
        ),
        K=camera.K,
        world_from_camera=world_from_camera,
        time=seconds(image.header.stamp),
        depth=None
        if depth is None
        else read_depth(
            depth,
            camera=camera,
            doubts=doubts,
            depth_camera=depth_camera,
            max_pixels=max_pixels,
        ),
    )


# images


def image_message(
    array_: Shaped[np.ndarray, 'h w *channels'], encoding: str, header: Header
) -> Image:
    """Return a raw image of an array whose dtype and channels are those of the encoding."""
    height, width = array_.shape[:2]
    return Image(
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        step=array_.nbytes // height,
        data=array('B', array_.tobytes()),
    )


def compressed_message(
    array_: UInt8[np.ndarray, 'h w *channels'],
    compression: Compression,
    quality: int,
    header: Header,
) -> CompressedImage:
    """Return the JPEG or PNG of an RGB image or of one channel; ``quality`` is that of JPEG, 1 to
    100."""
    stored = cv2.cvtColor(array_, cv2.COLOR_RGB2BGR) if array_.ndim == 3 else array_
    if compression == 'jpeg':
        done, data = cv2.imencode('.jpg', stored, [cv2.IMWRITE_JPEG_QUALITY, quality])
    else:
        flags = [cv2.IMWRITE_PNG_COMPRESSION, 1]
        flags += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
        done, data = cv2.imencode('.png', stored, flags)
    assert done
    return CompressedImage(header=header, format=compression, data=array('B', data.tobytes()))


def camera_info_message(
    K: Float[np.ndarray, '3 3'], height: int, width: int, header: Header
) -> CameraInfo:
    """Return the camera_info of a rectified camera."""
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


# chunks


def raw_bytes_of(chunk: Chunk) -> int:
    """Return the bytes of a chunk's images before compression."""
    arrays = [chunk.frames, chunk.visibility, chunk.memory_frames]
    return sum(a.nbytes for a in arrays if a is not None)


def chosen_compression(wanted: str, nbytes: int, *, raw_bytes: int) -> Compression:
    """Return the compression for images of ``nbytes``: 'auto' is jpeg where they exceed
    ``raw_bytes``."""
    if wanted != 'auto':
        return cast(Compression, wanted)
    return 'jpeg' if nbytes > raw_bytes else 'none'


def image_bytes(message: ImaginedChunk) -> int:
    """Return the bytes of all images of a message as they are sent."""
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
    """Return the message of a chunk; where frames are compressed, masks are compressed without
    loss.

    Raises:
        ValueError: The images of the message take more than ``max_bytes``.
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
        observation_stamp=stamp(chunk.observation_time),
        seed=chunk.seed,
        prompt=chunk.prompt,
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
    size = image_bytes(message)
    if size > max_bytes:
        raise ValueError(
            f'chunk {chunk.index} of {n} frames of {height}x{width} takes {size / 2**20:.1f} MiB '
            f'({compression}), '
            f'limits.max_message_bytes allows {max_bytes / 2**20:.1f}: choose jpeg, or a lower '
            'quality'
        )
    return message


def K_of_each(chunk: Chunk) -> Float[np.ndarray, 'n 3 3']:
    """Return the intrinsics of every frame; the engine gives one K for all or one a frame."""
    return np.broadcast_to(chunk.K, (len(chunk.frames), 3, 3))


def chunk_from_message(message: ImaginedChunk) -> Chunk:
    """Return the chunk of a message, exact where the images are not compressed.

    Raises ValueError.
    """
    frames, visibility = _images(message, 'frames'), _images(message, 'visibility')
    if frames is None or visibility is None:
        raise ValueError('chunk: frames and visibility are needed')
    return Chunk(
        request_id=message.request_id,
        index=message.index,
        count=message.count,
        frames=frames,
        visibility=visibility[..., 0],
        visible=np.array(message.visible, np.float32),
        observed=np.array(message.observed, np.float32),
        K=K_from_camera_info(message.camera_info).astype(np.float32),
        world_from_camera=matrices_from_poses(message.poses).astype(np.float32),
        times=np.array([seconds(time) for time in message.times]),
        memory_frames=_images(message, 'memory_frames'),
        depth_source=message.depth_source,
        observation_time=seconds(message.observation_stamp),
        model=message.model,
        seed=message.seed,
        prompt=message.prompt,
        seconds=message.seconds,
    )


def _images(message: ImaginedChunk, name: str) -> UInt8[np.ndarray, 'n h w 3'] | None:
    images = getattr(message, name) or getattr(message, f'{name}_compressed')
    return np.stack([rgb_from_image(image) for image in images]) if images else None
