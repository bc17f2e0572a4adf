"""The memory or the image that a request starts from, and the frames to generate along its
paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import time as clock
from typing import Any

from jaxtyping import Float64
import numpy as np
from sensor_msgs.msg import CameraInfo

from mirage_model.image_fit import fit_K
from mirage_model.interface import Observation, Trajectory
from mirage_model.messages.camera_info import read_camera
from mirage_model.messages.poses import check_optical, matrix_from_pose, seconds
from mirage_ros import convert
from mirage_ros.context import NodeContext
from mirage_ros.convert import AnyImage
from mirage_ros.memory_names import DRIVEN, Arrival
from mirage_ros.sensor_sync import CameraImages
from mirage_ros.trajectory import PlannedPath, frames_along

SAME_CLOCK = 86_400.0
"""Largest difference of two stamps of one clock [s]."""


@dataclass(frozen=True, kw_only=True)
class InitialState:
    """The memory that a request starts from, and its paths as the engine takes them."""

    memory: str
    observations: tuple[Observation, ...]
    """Seed the memory, which is dropped with the request; empty if the memory exists."""
    camera_frame: str
    """Frame id of the camera of the frames."""
    K: Float64[np.ndarray, '3 3'] | None
    """Intrinsics of the frames at the model's size; None for those of the start."""
    trajectories: tuple[Trajectory, ...]
    """Cameras in the world along each path, padded to whole chunks."""
    wanted: tuple[int, ...]
    """Frames along each path without the padding."""


def attached_images(
    images: Sequence[AnyImage], depths: Sequence[AnyImage], planned: PlannedPath
) -> CameraImages | None:
    """Return the image of a goal with its camera_info and depth, or None.

    Raises ValueError if it has no camera_info.
    """
    if depths and not images:
        raise ValueError('seed_depth: given without seed_image, give both')
    if not images:
        return None
    if planned.camera_info is None:
        raise ValueError('seed_image: given without trajectory.camera_info, give both')
    return CameraImages(
        image=images[0],
        camera_info=planned.camera_info,
        depth=depths[0] if depths else None,
        arrival=Arrival(seconds(images[0].header.stamp), clock.monotonic()),
    )


def initial_state(
    node: NodeContext,
    paths: Sequence[PlannedPath],
    *,
    request_id: str,
    images: CameraImages | None = None,
    more_images: Sequence[Any] = (),
    target_camera: Sequence[CameraInfo] = (),
    memory: str = '',
) -> InitialState:
    """Return the start of a request and the frames along its paths.

    A request starts from its own images, else from the memory that it names, else from the driven
    memory, else from the newest images of the sensors.

    Args:
        images: The request's own image to start from.
        more_images: Images that are written to the memory before ``images``.
        target_camera: Camera of the frames, if it is not that of the start.

    Raises:
        ValueError: The request names images and a memory, or a memory, an image or a transform is
            missing, or what the node chose to start from is older than ``request.max_age``, or a
            path is too short or too long.
    """
    if images is not None and memory:
        raise ValueError(f"memory: '{memory}' is given with seed_image, give one of them")
    if more_images and images is None:
        raise ValueError(f'more_images: {len(more_images)} without seed_image, give both')
    driven = node.parameters.memory.start_from_driven and node.memories.find(DRIVEN)
    if images is None and (memory or driven):
        record = node.memories.get(memory or DRIVEN)
        if not memory and record.newest is not None:
            _check_age(node, paths[0], "memory 'driven': its newest image", record.newest)
        memory = memory or DRIVEN
        camera_frame = record.camera_frame or node.sensors.camera_frame
        return _with_frames(
            node,
            paths,
            target_camera,
            request_id=request_id,
            memory=memory,
            observations=(),
            camera_frame=camera_frame,
        )
    if images is None:
        images = node.newest_images()
        _check_age(node, paths[0], 'image: the newest', images.arrival)
        for planned in paths:
            if planned.camera_info is not None:
                convert.check_same_camera(planned.camera_info, images.camera_info)
    image, camera_info = images.image, images.camera_info
    camera = read_camera(camera_info, node.doubts)
    node.frames.set_camera(camera)
    camera_frame = camera_info.header.frame_id
    world_from_image = _world_from_image(node, paths[0], image, camera_frame)
    if world_from_image is None:
        world_from_start = camera_path(node, paths[0], camera_frame)[0]
    else:
        world_from_start = world_from_image
    observation = convert.observation_from_messages(
        image,
        camera_info,
        images.depth,
        world_from_camera=world_from_start,
        max_pixels=node.parameters.limits.max_pixels,
        doubts=node.doubts,
        depth_camera=node.frames.depth_camera(images.depth, camera),
    )
    return _with_frames(
        node,
        paths,
        target_camera,
        request_id=request_id,
        memory=f'request {request_id}',
        observations=(*_observations(node, paths[0], more_images), observation),
        camera_frame=camera_frame,
        skip_first=world_from_image is None,
    )


def _check_age(node: NodeContext, planned: PlannedPath, what: str, newest: Arrival) -> None:
    """Raise ValueError where an image is older than ``request.max_age``.

    Its age is that by the node's clock. A stamp that is further than `SAME_CLOCK` from it is of
    another clock, as that of a recording is: then the time since the image was received counts.
    """
    limit = node.parameters.request.max_age
    if not limit:
        return
    what, now = (
        f'{what} has the stamp {newest.stamp:.3f}',
        node.get_clock().now().nanoseconds / 1e9,
    )
    age = now - newest.stamp
    text = f"{age:.1f} s before the node's clock, {now:.3f}"
    if abs(age) > SAME_CLOCK:
        age = clock.monotonic() - newest.received
        text = f"received {age:.1f} s ago; the node's clock is {now:.3f}"
        node.log_warning(
            f"{what}, the node's clock is {now:.3f}: these are different clocks, so its age is "
            'counted from when it was received'
        )
    if age > limit:
        raise ValueError(
            f'{what}, {text}; request.max_age is {limit:g} s (a recording needs its clock and '
            'use_sim_time, or request.max_age 0.0)'
        )
    begins = planned.frame_time or newest.stamp
    if limit < begins - newest.stamp <= SAME_CLOCK:
        node.log_warning(
            f"{what}, request '{planned.request_id}' has {begins:.3f}, which is "
            f'{begins - newest.stamp:.1f} s later: it is imagined from that old image'
        )


def _observations(
    node: NodeContext, planned: PlannedPath, images: Sequence[Any]
) -> list[Observation]:
    """Return the observations of PosedImage messages. Raises ValueError that names the index."""
    if not images:
        return []
    world_from_frame = node.frames.world_from(planned.frame, planned.frame_time)
    observations = []
    for index, posed in enumerate(images):
        try:
            observations.append(
                convert.observation_from_messages(
                    posed.image,
                    posed.camera_info,
                    posed.depth[0] if posed.depth else None,
                    world_from_camera=world_from_frame @ matrix_from_pose(posed.pose, name='pose'),
                    max_pixels=node.parameters.limits.max_pixels,
                    doubts=node.doubts,
                )
            )
        except ValueError as error:
            raise ValueError(f'more_images[{index}]: {error}') from None
    return observations


def camera_path(
    node: NodeContext, planned: PlannedPath, camera_frame: str
) -> Float64[np.ndarray, 'n 4 4']:
    """Return the poses of the camera in the world."""
    world_from_frame = node.frames.world_from(planned.frame, planned.frame_time)
    moving_from_camera = node.frames.moving_from_camera(
        planned.moving_frame, camera_frame, planned.frame_time
    )
    world_from_camera = world_from_frame @ planned.frame_from_moving @ moving_from_camera
    check_optical(world_from_camera, camera_frame, node.doubts)
    return world_from_camera


def _world_from_image(
    node: NodeContext, planned: PlannedPath, image: AnyImage, camera_frame: str
) -> Float64[np.ndarray, '4 4'] | None:
    """Return the pose of the camera when the image was taken; None if it is the first pose of the
    path."""
    if planned.frame_from_seed is not None:
        world_from_frame = node.frames.world_from(planned.frame, planned.frame_time)
        moving_from_camera = node.frames.moving_from_camera(
            planned.moving_frame, camera_frame, planned.frame_time
        )
        return world_from_frame @ planned.frame_from_seed @ moving_from_camera
    if node.parameters.observe.pose_source == 'none':
        return None
    return node.frames.world_from_camera(camera_frame, seconds(image.header.stamp))


def _with_frames(
    node: NodeContext,
    paths: Sequence[PlannedPath],
    target_camera: Sequence[CameraInfo],
    *,
    request_id: str,
    memory: str,
    observations: tuple[Observation, ...],
    camera_frame: str,
    skip_first: bool = False,
) -> InitialState:
    K = None
    if target_camera:
        camera, about = read_camera(target_camera[0], node.doubts), node.engine
        node.frames.set_camera(camera)
        camera_frame = camera.frame
        K = fit_K(camera.K, camera.size, about.height, about.width)
    cameras = [camera_path(node, planned, camera_frame) for planned in paths]
    frames = [
        frames_along(
            world_from_camera,
            planned.times,
            skip_first=skip_first,
            frame_rate=node.engine.frame_rate,
            max_frames=node.parameters.limits.max_frames,
        )
        for planned, world_from_camera in zip(paths, cameras)
    ]
    start = InitialState(
        memory=memory,
        observations=observations,
        camera_frame=camera_frame,
        K=K,
        trajectories=tuple(trajectory.padded(node.engine) for trajectory in frames),
        wanted=tuple(len(trajectory.times) for trajectory in frames),
    )
    length = node.engine.new_frames_per_chunk
    chunks = sum(len(trajectory.times) // length for trajectory in start.trajectories)
    source = f"memory '{memory}'"
    if observations:
        source = f'the image of {observations[-1].time:.3f}'
    along = f' along {len(paths)} paths' if len(paths) > 1 else ''
    node.get_logger().info(
        f"request '{request_id}' from {source}: {sum(start.wanted)} frames{along}, which take "
        f'{chunks} chunks of {length}'
    )
    return start
