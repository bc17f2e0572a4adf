"""Estimation of depth, sky and dynamic objects that a source lacks, by the model's perception.

The perception network estimates metric depth frame by frame, with an error in scale. Points
triangulated from the clip's cameras bring depth and cameras to one scale, and the frames of a clip
to each other's scale.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras
from mirage_model.clip import Clip
from mirage_model.memory import Readout
from mirage_model.perception import Estimate, Perception, with_sensor_depth
from mirage_model.perception.alignment import DEFAULT_ALIGNMENT, align
from mirage_model.write_filter import WriteFilterConfig

_BATCH = 8  # frames
_PARTNERS = (-8, -4, -2, 2, 4, 8)  # frames to track into, relative to a frame
_MAX_CORNERS = 300  # per frame
_MAX_TRACKING_ERROR = 0.7  # pixels, after tracking forwards and backwards
_MAX_REPROJECTION_ERROR = 1.0  # pixels
_MIN_PARALLAX = 5.0  # pixels, root of the sum of squares over partners
_MIN_POINTS = 50  # per clip


def complete(clip: Clip, perception: Perception) -> Clip:
    """Return the clip with depth in metres and labels; a complete clip is returned unchanged.

    Measured depth is kept. A clip without depth gets estimated depth, NaN where its confidence is
    low. With metric cameras the depth is scaled to the triangulated points; other cameras are
    scaled to the depth instead.

    Raises:
        ValueError: If too few points can be triangulated to find the scale.
    """
    if clip.labelled and clip.metric:
        return clip
    estimate = perceive(clip, perception)
    if not clip.depth.isnan().all():
        assert clip.metric, f'{clip.name}: depth without metres'
        estimate = with_sensor_depth(estimate, clip.depth)
        return replace(clip, sky=estimate.sky, moving=estimate.moving, labelled=True)
    estimate, cameras = to_scale(clip, estimate, triangulate(clip))
    uncertain = estimate.confidence < WriteFilterConfig().min_confidence
    depth = estimate.depth.masked_fill(uncertain, torch.nan)
    return replace(
        clip,
        depth=depth,
        cameras=cameras,
        sky=estimate.sky,
        moving=estimate.moving,
        labelled=True,
        metric=True,
    )


def perceive(clip: Clip, perception: Perception) -> Estimate:
    """Return the perception's estimate for each frame, computed in batches."""
    frames = clip.frames.permute(0, 3, 1, 2).float() / 255
    parts = [
        perception.estimate(frames[at : at + _BATCH], clip.cameras[at : at + _BATCH])
        for at in range(0, len(frames), _BATCH)
    ]
    joined = {
        name: torch.cat([getattr(part, name).cpu() for part in parts])
        for name in ('depth', 'confidence', 'sky', 'moving', 'moving_probability', 'scaled')
    }
    return Estimate(cameras=clip.cameras, **joined)


def to_scale(
    clip: Clip, estimate: Estimate, points: Float[Tensor, 'n h w']
) -> tuple[Estimate, Cameras]:
    """Return the estimate and cameras in one scale, in metres.

    The clip is scaled by one factor, the median ratio of depths. Then each frame's depth is
    aligned to the points of that frame, as online perception is aligned to the memory.

    Args:
        clip: Frames and cameras; metric cameras keep their scale.
        estimate: Estimate for each frame.
        points: Triangulated depth in the unit of the clip's cameras; NaN at other pixels.

    Raises:
        ValueError: If there are too few points.
    """
    usable = ~(points.isnan() | estimate.depth.isnan() | estimate.moving)
    count = int(usable.sum())
    if count < _MIN_POINTS:
        raise ValueError(
            f'{count} points could be triangulated, {_MIN_POINTS} are needed to find the scale: '
            'the camera moves too little, or the frames have too little texture'
        )
    scale = (points[usable].log() - estimate.depth[usable].log()).median().exp()
    cameras = clip.cameras
    if clip.metric:
        estimate = replace(estimate, depth=estimate.depth * scale)
    else:
        world_from_camera = cameras.world_from_camera.clone()
        world_from_camera[:, :3, 3] /= scale
        cameras = replace(cameras, world_from_camera=world_from_camera)
        points = points / scale
    triangulated = ~points.isnan()
    readout = Readout(
        latents=points.new_zeros(len(points), 0, *points.shape[1:]),
        visible=triangulated,
        observed=triangulated,
        depth=points.nan_to_num(0.0),
        age=torch.zeros_like(points),
        offset=points.new_zeros(len(points), 2, *points.shape[1:]),
        depth_ratio=torch.zeros_like(points),
    )
    depth = [
        align(_frame(estimate, i), readout[i : i + 1], DEFAULT_ALIGNMENT).depth
        for i in range(len(points))
    ]
    return replace(estimate, depth=torch.cat(depth), cameras=cameras), cameras


def _frame(estimate: Estimate, i: int) -> Estimate:
    return Estimate(**{name: value[i : i + 1] for name, value in vars(estimate).items()})


def triangulate(clip: Clip) -> Float[Tensor, 'n h w']:
    """Return the depth of tracked corners in the cameras' unit, and NaN at other pixels.

    A corner's inverse depth q is the least-squares solution over the frames that it is tracked
    into. With the ray r = R (x, y, 1) rotated into the other camera, the translation t and the
    tracked normalised image point (u, v), each frame gives u (r_z + t_z q) = r_x + t_x q, and the
    same for v and y. Corners with a large reprojection error or a small parallax are dropped.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip.frames.numpy()]
    K = clip.cameras.K.double().numpy()
    world_from_camera = clip.cameras.world_from_camera.double().numpy()
    height, width = grey[0].shape
    depth = np.full((len(grey), height, width), np.nan, np.float32)
    for i, image in enumerate(grey):
        corners = cv2.goodFeaturesToTrack(image, _MAX_CORNERS, 0.01, 3)
        if corners is None:
            continue
        corners = corners[:, 0]
        rays = _rays(corners, K[i])
        squares = np.zeros(len(corners))
        products = np.zeros(len(corners))
        equations = []
        for j in (i + step for step in _PARTNERS if 0 <= i + step < len(grey)):
            other_from_this = np.linalg.inv(world_from_camera[j]) @ world_from_camera[i]
            rotated, translation = rays @ other_from_this[:3, :3].T, other_from_this[:3, 3]
            positions, tracked = _track(image, grey[j], corners, rotated, K[j])
            observed = _rays(positions, K[j])
            for axis in (0, 1):
                a = (
                    K[j, axis, axis]
                    * (observed[:, axis] * translation[2] - translation[axis])
                    * tracked
                )
                b = (
                    K[j, axis, axis]
                    * (rotated[:, axis] - observed[:, axis] * rotated[:, 2])
                    * tracked
                )
                squares += a * a
                products += a * b
                equations.append((a, b))
        if not equations:
            continue
        inverse = products / np.maximum(squares, 1e-12)
        error = np.max([np.abs(a * inverse - b) for a, b in equations], axis=0)
        parallax = np.sqrt(squares) * inverse
        good = (inverse > 0) & (error < _MAX_REPROJECTION_ERROR) & (parallax > _MIN_PARALLAX)
        x, y = corners[good].round().astype(int).T
        depth[i, y, x] = 1 / inverse[good]
    return torch.from_numpy(depth)


def _rays(pixels: Float[np.ndarray, 'k 2'], K: Float[np.ndarray, '3 3']):
    """Return the rays (k, 3) through pixels, in the camera frame with z = 1."""
    x = (pixels[:, 0] - K[0, 2]) / K[0, 0]
    y = (pixels[:, 1] - K[1, 2]) / K[1, 1]
    return np.stack([x, y, np.ones_like(x)], axis=1)


def _track(
    image: np.ndarray,
    other: np.ndarray,
    corners: Float[np.ndarray, 'k 2'],
    rotated: Float[np.ndarray, 'k 3'],
    K: Float[np.ndarray, '3 3'],
):
    """Track corners into another image and back again.

    The search starts at the projection of a corner at infinite distance.

    Args:
        image: (h, w) uint8 image of the corners.
        other: (h, w) uint8 image to track into.
        corners: Positions in ``image`` [px].
        rotated: Rays of the corners, rotated into the other camera.
        K: Intrinsics of the other camera [px].

    Returns:
        Positions (k, 2) in ``other`` [px], and success (k,) bool.
    """
    ahead = rotated[:, 2] > 0.1
    far = rotated[:, :2] / np.where(ahead, rotated[:, 2], 1.0)[:, None]
    guess = (far * [K[0, 0], K[1, 1]] + [K[0, 2], K[1, 2]]).astype(np.float32)
    height, width = image.shape
    ahead &= ((guess >= 0) & (guess <= [width - 1, height - 1])).all(axis=1)
    guess[~ahead] = corners[~ahead]
    window: dict[str, Any] = {
        'winSize': (11, 11),
        'maxLevel': 3,
        'flags': cv2.OPTFLOW_USE_INITIAL_FLOW,
    }
    positions, forward, _ = cv2.calcOpticalFlowPyrLK(
        image, other, corners[:, None], guess[:, None].copy(), **window
    )
    returned, backward, _ = cv2.calcOpticalFlowPyrLK(
        other, image, positions, corners[:, None].copy(), **window
    )
    error = np.linalg.norm(returned[:, 0] - corners, axis=1)
    positions = positions[:, 0].astype(np.float64)
    tracked = ahead & (forward[:, 0] == 1) & (backward[:, 0] == 1) & (error < _MAX_TRACKING_ERROR)
    return positions, tracked
