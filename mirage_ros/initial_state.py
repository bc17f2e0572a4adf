"""The memory or the image that a request starts from, and the frames to generate along its
paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float64
import numpy as np

from mirage_model.engine.inputs import pad_to_chunks
from mirage_model.interface import Observation, Trajectory
from mirage_model.messages.poses import seconds
from mirage_ros import convert
from mirage_ros.context import NodeContext
from mirage_ros.convert import AnyImage
from mirage_ros.memory_names import DRIVEN
from mirage_ros.sensor_sync import CameraImages
from mirage_ros.trajectory import PlannedPath, frames_along


@dataclass(frozen=True, kw_only=True)
class InitialState:
    """The memory that a request starts from, and its paths as the engine takes them."""

    memory: str
    observation: Observation | None
    """Seeds the memory, which is dropped with the request; None if the memory exists."""
    camera_frame: str
    """Frame id of the camera."""
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
        raise ValueError('seed_depth: needs seed_image')
    if not images:
        return None
    if planned.camera_info is None:
        raise ValueError('seed_image: needs trajectory.camera_info')
    return images[0], planned.camera_info, depths[0] if depths else None


def initial_state(
    node: NodeContext,
    paths: Sequence[PlannedPath],
    *,
    request_id: str,
    images: CameraImages | None = None,
    memory: str = '',
) -> InitialState:
    """Return the start of a request and the frames along its paths.

    A request starts from its own images, else from the memory that it names, else from the driven
    memory, else from the newest images of the sensors.

    Raises:
        ValueError: The request names images and a memory, or a memory, an image or a transform is
            missing, or a path is too short or too long.
    """
    if images is not None and memory:
        raise ValueError(f"memory: '{memory}' is given with seed_image, use one of them")
    driven = node.parameters.memory.start_from_driven and node.memories.find(DRIVEN)
    if images is None and (memory or driven):
        memory = memory or DRIVEN
        camera_frame = node.memories.get(memory).camera_frame or node.sensors.camera_frame
        cameras = [camera_path(node, planned, camera_frame) for planned in paths]
        return _with_frames(
            node, paths, cameras, memory=memory, observation=None, camera_frame=camera_frame
        )
    if images is None:
        images = node.sensors.newest()
        for planned in paths:
            if planned.camera_info is not None:
                convert.check_same_camera(planned.camera_info, images[1])
    image, camera_info, depth = images
    camera_frame = camera_info.header.frame_id
    cameras = [camera_path(node, planned, camera_frame) for planned in paths]
    world_from_image = _world_from_image(node, paths[0], image, camera_frame)
    observation = convert.observation_from_messages(
        image,
        camera_info,
        depth,
        world_from_camera=cameras[0][0] if world_from_image is None else world_from_image,
        max_pixels=node.parameters.limits.max_pixels,
    )
    return _with_frames(
        node,
        paths,
        cameras,
        memory=f'request {request_id}',
        observation=observation,
        camera_frame=camera_frame,
        skip_first=world_from_image is None,
    )


def camera_path(
    node: NodeContext, planned: PlannedPath, camera_frame: str
) -> Float64[np.ndarray, 'n 4 4']:
    """Return the poses of the camera in the world."""
    world_from_frame = node.frames.world_from(planned.frame, planned.frame_time)
    moving_from_camera = node.frames.moving_from_camera(
        planned.moving_frame, camera_frame, planned.frame_time
    )
    return world_from_frame @ planned.frame_from_moving @ moving_from_camera


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
    cameras: Sequence[Float64[np.ndarray, 'n 4 4']],
    *,
    memory: str,
    observation: Observation | None,
    camera_frame: str,
    skip_first: bool = False,
) -> InitialState:
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
    return InitialState(
        memory=memory,
        observation=observation,
        camera_frame=camera_frame,
        trajectories=tuple(pad_to_chunks(trajectory, node.engine) for trajectory in frames),
        wanted=tuple(len(trajectory.times) for trajectory in frames),
    )
