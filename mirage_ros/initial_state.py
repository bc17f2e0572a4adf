"""What a request starts from: a memory that is there, or an image; and the frames to ask for along its paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float64
import numpy as np
from sensor_msgs.msg import CameraInfo

from mirage_model.interface import Observation
from mirage_model.messages.poses import seconds
from mirage_ros import convert
from mirage_ros.context import NodeContext
from mirage_ros.convert import PlannedPath
from mirage_ros.memory_registry import DRIVEN
from mirage_ros.sensor_sync import AnyImage
from mirage_ros.trajectory import FramePlan, frames_along, world_path


@dataclass(frozen=True, kw_only=True)
class Seed:
    """An image with its camera, to start from in place of what the node has."""

    image: AnyImage
    camera_info: CameraInfo
    depth: AnyImage | None


@dataclass(frozen=True, kw_only=True)
class InitialState:
    """``memory`` is there, or is to be made of ``view`` and dropped with the request."""

    memory: str
    view: Observation | None
    camera_frame: str
    plans: tuple[FramePlan, ...]

    @property
    def wanted(self) -> tuple[int, ...]:
        return tuple(plan.wanted for plan in self.plans)


def own_seed(
    images: Sequence[AnyImage], depths: Sequence[AnyImage], first: PlannedPath
) -> Seed | None:
    """The image that a goal brought along, if it did. Raise ValueError where it lacks its camera."""
    if depths and not images:
        raise ValueError('seed_depth without seed_image')
    if not images:
        return None
    if first.camera_info is None:
        raise ValueError('seed_image without trajectory.camera_info')
    return Seed(
        image=images[0], camera_info=first.camera_info, depth=depths[0] if depths else None
    )


def start(
    node: NodeContext,
    paths: Sequence[PlannedPath],
    *,
    request_id: str,
    seed: Seed | None = None,
    memory: str = '',
) -> InitialState:
    """Raise ValueError for what cannot be served, before the engine is asked."""
    first = paths[0]
    if seed is not None and memory:
        raise ValueError(f"seed_image and memory '{memory}': a request starts from one of them")
    driven = node.parameters.memory.start_from_driven and node.memories.find(DRIVEN)
    if seed is None and (memory or driven):
        memory = memory or DRIVEN
        camera_frame = node.memories.get(memory).camera_frame or node.sensors.camera_frame
        poses = [camera_path(node, planned, camera_frame) for planned in paths]
        return InitialState(
            memory=memory,
            view=None,
            camera_frame=camera_frame,
            plans=_plans(node, paths, poses, starts_at_seed=False),
        )
    if seed is None:
        image, camera_info, depth = node.sensors.newest()
        for planned in paths:
            if planned.camera_info is not None:
                convert.check_same_camera(planned.camera_info, camera_info)
        seed = Seed(image=image, camera_info=camera_info, depth=depth)
    camera_frame = seed.camera_info.header.frame_id
    poses = [camera_path(node, planned, camera_frame) for planned in paths]
    world_from_seed = _world_from_seed(node, first, seed, camera_frame)
    starts_at_seed = world_from_seed is None
    plans = _plans(node, paths, poses, starts_at_seed=starts_at_seed)
    view = convert.observation_from_messages(
        seed.image,
        seed.camera_info,
        seed.depth,
        world_from_camera=poses[0][0] if starts_at_seed else world_from_seed,
        max_pixels=node.parameters.limits.max_pixels,
    )
    return InitialState(
        memory=f'request {request_id}', view=view, camera_frame=camera_frame, plans=plans
    )


def camera_path(
    node: NodeContext, planned: PlannedPath, camera_frame: str
) -> Float64[np.ndarray, 'n 4 4']:
    from_camera = node.frames.moving_from_camera(
        planned.moving_frame, camera_frame, planned.frame_time
    )
    return world_path(planned, node.frames) @ from_camera


def _world_from_seed(
    node: NodeContext, planned: PlannedPath, seed: Seed, camera_frame: str
) -> Float64[np.ndarray, '4 4'] | None:
    """Where the request says, or the node knows, that the camera was; None: at the first pose."""
    if planned.frame_from_seed is not None:
        from_camera = node.frames.moving_from_camera(
            planned.moving_frame, camera_frame, planned.frame_time
        )
        world = node.frames.world_from(planned.frame, planned.frame_time)
        return world @ planned.frame_from_seed @ from_camera
    if node.parameters.observe.pose_source == 'none':
        return None
    return node.frames.world_from_camera(camera_frame, seconds(seed.image.header.stamp))


def _plans(
    node: NodeContext,
    paths: Sequence[PlannedPath],
    poses: Sequence[np.ndarray],
    *,
    starts_at_seed: bool,
) -> tuple[FramePlan, ...]:
    return tuple(
        frames_along(
            world_from_camera,
            planned.times,
            starts_at_seed=starts_at_seed,
            engine=node.engine,
            max_frames=node.parameters.limits.max_frames,
        )
        for planned, world_from_camera in zip(paths, poses)
    )
