"""From a planned path to the cameras that an engine is asked for: frames joined, resampled, padded."""

from __future__ import annotations

from dataclasses import dataclass
import math

from jaxtyping import Float64
import numpy as np

from mirage_model.interface import ModelInfo
from mirage_model.messages.poses import matrix_from_numbers, resample_trajectory
from mirage_model.messages.transform_tree import TransformTree
from mirage_ros.convert import PlannedPath
from mirage_ros.parameters import NodeParameters

ROUNDED = 2e-6
"""Seconds by which a stamp may be off: it holds whole microseconds, and a float of today's date quarters of one."""


class CameraFrames:
    """Where the camera is, by parameters and transforms. Raises ValueError that names both frames and the times."""

    def __init__(self, parameters: NodeParameters, transforms: TransformTree):
        self._parameters = parameters
        self._transforms = transforms
        self._base_from_camera = (
            matrix_from_numbers(parameters.frames.base_from_camera, name='frames.base_from_camera')
            if parameters.frames.base_from_camera
            else None
        )

    def world_from(self, frame: str, time: float | None) -> Float64[np.ndarray, '4 4']:
        """``time`` None is the newest that is known."""
        world = self._parameters.frames.world
        if frame == world:
            return np.eye(4)
        if not frame:
            raise ValueError(
                f"the path is in frame '', it must name one that is joined to '{world}'"
            )
        return self._transforms.lookup(world, frame, time, wait=self._parameters.tf.wait)

    def moving_from_camera(
        self, moving: str, camera: str, time: float | None
    ) -> Float64[np.ndarray, '4 4']:
        """Where the camera sits on what moves."""
        if moving in ('', camera):
            return np.eye(4)
        if moving == self._parameters.frames.base and self._base_from_camera is not None:
            return self._base_from_camera
        if not camera:
            raise ValueError('which camera it is, is not known: no camera_info has come')
        try:
            return self._transforms.lookup(moving, camera, time, wait=self._parameters.tf.wait)
        except ValueError as error:
            raise ValueError(
                f"the poses are of '{moving}', and where the camera '{camera}' sits on it is not known "
                f'(frames.base_from_camera is of {self._parameters.frames.base}): {error}'
            ) from None

    def world_from_camera(
        self, camera: str, time: float, *, wait: float | None = None
    ) -> Float64[np.ndarray, '4 4']:
        """Where the camera was at a time. Raise ValueError too where there is no ``pose_source``."""
        parameters = self._parameters
        if parameters.observe.pose_source == 'none':
            raise ValueError('observe.pose_source is none: the pose of the camera is unknown')
        wait = parameters.tf.wait if wait is None else wait
        if self._base_from_camera is None:
            return self._transforms.lookup(parameters.frames.world, camera, time, wait=wait)
        world_from_base = self._transforms.lookup(
            parameters.frames.world, parameters.frames.base, time, wait=wait
        )
        return world_from_base @ self._base_from_camera

    def world_from_odom(self, time: float) -> Float64[np.ndarray, '4 4'] | None:
        """None where the tree has no such frame at that time."""
        try:
            return self._transforms.lookup(
                self._parameters.frames.world, self._parameters.frames.odom, time
            )
        except ValueError:
            return None


@dataclass(frozen=True, kw_only=True)
class FramePlan:
    """Cameras in the world, one a frame; those from ``wanted`` on only fill the last chunk and hold the last camera."""

    world_from_camera: Float64[np.ndarray, 'n 4 4']
    times: Float64[np.ndarray, ' n']
    wanted: int


def world_path(planned: PlannedPath, frames: CameraFrames) -> Float64[np.ndarray, 'n 4 4']:
    """The poses of what moves, in the world."""
    return frames.world_from(planned.frame, planned.frame_time) @ planned.frame_from_moving


def frames_along(
    world_from_camera: Float64[np.ndarray, 'n 4 4'],
    times: Float64[np.ndarray, ' n'],
    *,
    starts_at_seed: bool,
    engine: ModelInfo,
    max_frames: int,
) -> FramePlan:
    """Frames at t0 + k / frame rate up to the end of the path; k starts at 1 where the first pose is the seed's, else at 0.

    Raise ValueError for a path that is shorter than one frame or longer than ``max_frames``, and for what
    `resample_trajectory` refuses.
    """
    if len(times) == 0:
        raise ValueError('the path is empty')
    first = 1 if starts_at_seed else 0
    # a path of exactly n frames must give n
    last = math.floor((times[-1] - times[0] + ROUNDED) * engine.frame_rate + 1e-4)
    wanted = last - first + 1
    if wanted < 1:
        raise ValueError(
            f'the path takes {times[-1] - times[0]:.3f} s, less than one frame at {engine.frame_rate:g} Hz'
        )
    if wanted > max_frames:
        raise ValueError(
            f'the path takes {wanted} frames at {engine.frame_rate:g} Hz, limits.max_frames is {max_frames}'
        )
    padded = -(-wanted // engine.new_frames_per_chunk) * engine.new_frames_per_chunk
    at = times[0] + np.arange(first, first + padded) / engine.frame_rate
    # a pose that was sent for a frame is that frame's, though its stamp was rounded
    near = times[np.searchsorted(times, at - ROUNDED).clip(max=len(times) - 1)]
    asked = np.where(np.abs(near - at) <= ROUNDED, near, at)
    return FramePlan(
        world_from_camera=resample_trajectory(world_from_camera, times, asked),
        times=at,
        wanted=wanted,
    )
