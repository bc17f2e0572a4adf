"""Check what a caller gives the engine: observations fitted to the model's frame, paths turned
into cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras, check_cameras, concatenate
from mirage_model.image_fit import crop, fit_depth, fit_image, fit_K
from mirage_model.interface import InvalidRequest, Observation, Trajectory


@dataclass(frozen=True, kw_only=True)
class FittedObservation:
    """An observation at the size of the model's frame, colours in 0..1, depth in metres."""

    frame: Float[Tensor, '1 3 H W']
    depth: Float[Tensor, '1 H W'] | None
    camera: Cameras


def fit_observation(observation: Observation, height: int, width: int) -> FittedObservation:
    """Crop and scale an observation to a size, its K with it, as `mirage_model.image_fit` does.

    Raises:
        InvalidRequest: An array has a wrong shape, the camera is not a pinhole with a rigid pose,
            or no depth within the crop is valid.
    """
    image, depth = np.asarray(observation.image), observation.depth
    frame = frame_from_image(image, height, width)
    if depth is not None and np.shape(depth) != image.shape[:2]:
        raise InvalidRequest(
            f'depth: shape {np.shape(depth)}, must be that of the image, {image.shape[:2]}'
        )
    K = np.asarray(observation.K, dtype=np.float64)
    if K.shape != (3, 3):
        raise InvalidRequest(f'K: shape {K.shape}, must be (3, 3)')
    world_from_camera = np.asarray(observation.world_from_camera, dtype=np.float32)
    if world_from_camera.shape != (4, 4):
        raise InvalidRequest(f'world_from_camera: shape {world_from_camera.shape}, must be (4, 4)')
    camera = checked(
        Cameras(
            K=torch.from_numpy(fit_K(K, image.shape[:2], height, width)).float()[None],
            world_from_camera=torch.from_numpy(world_from_camera)[None],
            times=torch.tensor([observation.time], dtype=torch.float64),
            height=height,
            width=width,
        )
    )
    fitted_depth = None
    if depth is not None:
        depth = np.asarray(depth, dtype=np.float32)
        cropped = crop(depth, height, width)
        if not (np.isfinite(cropped) & (cropped > 0)).any():
            raise InvalidRequest(
                'depth: no pixel is valid in the part of the image that the model uses, send '
                'depth that covers it'
            )
        fitted_depth = torch.from_numpy(fit_depth(depth, height, width))[None]
    return FittedObservation(frame=frame, depth=fitted_depth, camera=camera)


def frame_from_image(image: np.ndarray, height: int, width: int) -> Float[Tensor, '1 3 H W']:
    """Return an RGB image fitted to a size, colours in 0..1.

    Raises InvalidRequest for another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InvalidRequest(
            f'image: {image.dtype} of shape {image.shape}, must be uint8 (height, width, 3)'
        )
    fitted = torch.from_numpy(fit_image(image, height, width))
    return fitted.permute(2, 0, 1)[None].float() / 255


def cameras_along(like: Cameras, world_from_camera: np.ndarray, times: np.ndarray) -> Cameras:
    """Return the cameras of a path on the CPU, each with the K and the size of ``like``.

    Raises InvalidRequest for a path that `check_cameras` rejects.
    """
    return checked(_along(like, world_from_camera, times))


def cameras_along_all(like: Cameras, paths: Sequence[Trajectory]) -> Cameras:
    """Return the cameras of several paths one after the other, checked at once.

    Raises InvalidRequest for a path that `check_cameras` rejects.
    """
    parts = [_along(like, path.world_from_camera, path.times) for path in paths]
    for number, part in enumerate(parts):
        if not len(part):
            raise InvalidRequest(f'path {number}: empty, at least one pose is needed')
    try:
        return check_cameras(concatenate(parts))
    except ValueError as error:
        raise InvalidRequest(f'all paths one after the other: {error}') from None


def _along(like: Cameras, world_from_camera: np.ndarray, times: np.ndarray) -> Cameras:
    poses = np.asarray(world_from_camera, dtype=np.float32)
    times = np.asarray(times, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or times.shape != poses.shape[:1]:
        raise InvalidRequest(
            f'world_from_camera, times: shapes {poses.shape} and {times.shape}, must be (n, 4, 4) '
            'and (n,)'
        )
    return Cameras(
        K=like.K.cpu().expand(len(poses), 3, 3),
        world_from_camera=torch.from_numpy(poses),
        times=torch.from_numpy(times),
        height=like.height,
        width=like.width,
    )


def checked(cameras: Cameras) -> Cameras:
    """Return the cameras, or raise InvalidRequest where `check_cameras` rejects them."""
    try:
        return check_cameras(cameras)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
