"""What comes in from outside, checked: views cropped and scaled to the model's frame, paths as cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
from jaxtyping import Float, UInt8
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras, check_cameras, concatenate, resized
from mirage_model.interface import InvalidRequest, Observation, Trajectory


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A view at the size of the model's frame, colours in 0..1."""

    frame: Float[Tensor, '1 3 H W']
    depth: Float[Tensor, '1 H W'] | None
    camera: Cameras


def fit_view(view: Observation, height: int, width: int) -> Fitted:
    """Crop a view about its centre to the aspect asked for and scale it to the size, K kept right.

    Raises InvalidRequest.
    """
    image, depth = np.asarray(view.image), view.depth
    top, left, crop_height, crop_width = _crop(image, height, width)
    if depth is not None and np.shape(depth) != image.shape[:2]:
        raise InvalidRequest(
            f'depth {np.shape(depth)} is not registered to the image {image.shape[:2]}'
        )
    K = np.array(view.K, dtype=np.float64)
    if K.shape != (3, 3):
        raise InvalidRequest(f'K must be 3x3, got {K.shape}')
    pose = np.asarray(view.world_from_camera, dtype=np.float32)
    if pose.shape != (4, 4):
        raise InvalidRequest(f'world_from_camera must be 4x4, got {pose.shape}')
    K[:2, 2] -= left, top
    cropped = checked(
        Cameras(
            K=torch.from_numpy(K).float()[None],
            world_from_camera=torch.from_numpy(pose)[None],
            times=torch.tensor([view.time], dtype=torch.float64),
            height=crop_height,
            width=crop_width,
        )
    )
    if depth is not None:
        depth = np.asarray(depth, dtype=np.float32)
        depth = depth[top : top + crop_height, left : left + crop_width]
        if not (np.isfinite(depth) & (depth > 0)).any():
            raise InvalidRequest('the depth image has no valid pixel where the model looks')
        # a sample, never a blend of two surfaces
        depth = cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        depth = torch.from_numpy(depth)[None]
    return Fitted(
        frame=fit_image(image, height, width), depth=depth, camera=resized(cropped, height, width)
    )


def fit_image(image: np.ndarray, height: int, width: int) -> Float[Tensor, '1 3 H W']:
    """As `fit_pixels`, colours in 0..1."""
    return torch.from_numpy(fit_pixels(image, height, width)).permute(2, 0, 1)[None].float() / 255


def fit_pixels(
    image: np.ndarray, height: int, width: int
) -> UInt8[np.ndarray, '{height} {width} 3']:
    """An image cropped and scaled as `fit_view` does it. Raises InvalidRequest."""
    top, left, crop_height, crop_width = _crop(image, height, width)
    interpolation = cv2.INTER_AREA if crop_height > height else cv2.INTER_LINEAR
    image = image[top : top + crop_height, left : left + crop_width]
    return cv2.resize(image, (width, height), interpolation=interpolation)


def cameras_along(like: Cameras, world_from_camera: np.ndarray, times: np.ndarray) -> Cameras:
    """Cameras of a path on the CPU, each with the K and the size of ``like``. Raises InvalidRequest."""
    return checked(_along(like, world_from_camera, times))


def cameras_along_all(like: Cameras, paths: Sequence[Trajectory]) -> Cameras:
    """As `cameras_along`, of several paths one after the other; checked at once, where each alone takes as long as all."""
    parts = [_along(like, path.world_from_camera, path.times) for path in paths]
    for number, part in enumerate(parts):
        if not len(part):
            raise InvalidRequest(f'path {number} is empty')
    try:
        return check_cameras(concatenate(parts))
    except ValueError as error:
        raise InvalidRequest(f'of all paths, one after the other, {error}') from None


def _along(like: Cameras, world_from_camera: np.ndarray, times: np.ndarray) -> Cameras:
    poses = np.asarray(world_from_camera, dtype=np.float32)
    times = np.asarray(times, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or times.shape != poses.shape[:1]:
        raise InvalidRequest(
            f'need poses (n, 4, 4) and times (n,), got {poses.shape} and {times.shape}'
        )
    return Cameras(
        K=like.K.cpu().expand(len(poses), 3, 3),
        world_from_camera=torch.from_numpy(poses),
        times=torch.from_numpy(times),
        height=like.height,
        width=like.width,
    )


def checked(cameras: Cameras) -> Cameras:
    """The cameras, unless `check_cameras` finds fault: then InvalidRequest."""
    try:
        return check_cameras(cameras)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def _crop(image: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest part of the image with the aspect asked for."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InvalidRequest(
            f'the image must be (height, width, 3) uint8, got {image.shape} {image.dtype}'
        )
    scale = min(image.shape[0] / height, image.shape[1] / width)
    crop_height, crop_width = round(height * scale), round(width * scale)
    top, left = (image.shape[0] - crop_height) // 2, (image.shape[1] - crop_width) // 2
    return top, left, crop_height, crop_width
