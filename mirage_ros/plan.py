"""From a planned path to the cameras that an engine is asked for: the camera on the moving frame, resampled, padded."""

from __future__ import annotations

from dataclasses import dataclass
import math

from jaxtyping import Float64
import numpy as np

from mirage_model.camera import resample_trajectory
from mirage_model.interface import Description
from mirage_ros.convert import Planned, matrix_from_numbers
from mirage_ros.settings import Settings


def moving_from_camera(
    planned: Planned, camera_frame: str, settings: Settings
) -> Float64[np.ndarray, '4 4']:
    """Where the camera sits on what moves.

    Raise ValueError for frames that are not known, and where base_from_camera is needed and not set.
    """
    if planned.world_frame != settings.world_frame:
        raise ValueError(
            f"the path is in frame '{planned.world_frame}', this node's world_frame is '{settings.world_frame}'"
        )
    if planned.moving_frame in ('', camera_frame):
        return np.eye(4)
    if planned.moving_frame != settings.base_frame:
        raise ValueError(
            f"moving_frame '{planned.moving_frame}' is neither the camera's frame '{camera_frame}' "
            f"nor base_frame '{settings.base_frame}'"
        )
    if not settings.base_from_camera:
        raise ValueError(
            f"the poses are of '{planned.moving_frame}' and base_from_camera, where '{camera_frame}' sits on it, is not set"
        )
    return matrix_from_numbers(settings.base_from_camera, name='base_from_camera')


@dataclass(frozen=True, kw_only=True)
class FramePlan:
    """Cameras in the world, one a frame; those from ``wanted`` on only fill the last chunk and hold the last camera."""

    world_from_camera: Float64[np.ndarray, 'n 4 4']
    times: Float64[np.ndarray, ' n']
    wanted: int


def frames_along(
    world_from_camera: Float64[np.ndarray, 'n 4 4'],
    times: Float64[np.ndarray, ' n'],
    *,
    starts_at_seed: bool,
    engine: Description,
    max_frames: int,
) -> FramePlan:
    """Frames at t0 + k / frame rate up to the end of the path; k starts at 1 where the first pose is the seed's, else at 0.

    Raise ValueError for a path that is shorter than one frame or longer than ``max_frames``, and for what
    `resample_trajectory` refuses.
    """
    if len(times) == 0:
        raise ValueError('the path is empty')
    first = 1 if starts_at_seed else 0
    # stamps are rounded to microseconds: a path of exactly n frames must give n
    last = math.floor((times[-1] - times[0]) * engine.frame_rate + 1e-4)
    wanted = last - first + 1
    if wanted < 1:
        raise ValueError(
            f'the path takes {times[-1] - times[0]:.3f} s, less than one frame at {engine.frame_rate:g} Hz'
        )
    if wanted > max_frames:
        raise ValueError(
            f'the path takes {wanted} frames at {engine.frame_rate:g} Hz, max_frames is {max_frames}'
        )
    padded = -(-wanted // engine.new_frames_per_chunk) * engine.new_frames_per_chunk
    at = times[0] + np.arange(first, first + padded) / engine.frame_rate
    return FramePlan(
        world_from_camera=resample_trajectory(world_from_camera, times, at),
        times=at,
        wanted=wanted,
    )
