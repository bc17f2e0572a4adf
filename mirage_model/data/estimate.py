"""Estimation of depth, sky and dynamic objects that a source lacks, by the model's perception.

The network's depth is a guess at metres, made frame by frame. Points that are triangulated from
the clip's known cameras hold it together: they bring depth and cameras to one scale, and every
frame to the others'.
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
from mirage_model.perception import Estimate, Perception
from mirage_model.perception.alignment import DEFAULT_ALIGNMENT, align
from mirage_model.write_filter import WriteFilterConfig

_BATCH = 8
_PARTNERS = (-8, -4, -2, 2, 4, 8)
_CORNERS = 300
_TRACK_ERROR = 0.7  # pixels, there and back
_REPROJECTION = 1.0  # pixels
_PARALLAX = 5.0  # pixels, over all partners
_ENOUGH = 50  # points of a clip


def complete(clip: Clip, perception: Perception) -> Clip:
    """Return the clip with depth in metres and labels; a complete clip is returned unchanged.

    Depth that a sensor measured stays. Where there is none, it is estimated and multiplied by the
    factor that brings it to the triangulated points, and pixels of low confidence have none;
    cameras that are not in metres are scaled to the estimate instead. Raises ValueError where the
    cameras move too little, or the frames show too little, to find that factor.
    """
    if clip.labelled and clip.metric:
        return clip
    seen = perceive(clip, perception)
    labelled = replace(clip, sky=seen.sky, moving=seen.moving, labelled=True)
    if not clip.depth.isnan().all():
        assert clip.metric, f'{clip.name}: depth without metres'
        return labelled
    seen, cameras = to_scale(clip, seen, triangulate(clip))
    unsure = seen.confidence < WriteFilterConfig().min_confidence
    depth = seen.depth.masked_fill(unsure, torch.nan)
    return replace(labelled, depth=depth, cameras=cameras, metric=True)


def perceive(clip: Clip, perception: Perception) -> Estimate:
    """Estimate each frame by itself, in batches."""
    frames = clip.frames.permute(0, 3, 1, 2).float() / 255
    parts = [
        perception.estimate(frames[at : at + _BATCH], clip.cameras[at : at + _BATCH])
        for at in range(0, len(frames), _BATCH)
    ]
    joined = {
        name: torch.cat([getattr(part, name).cpu() for part in parts])
        for name in ('depth', 'confidence', 'sky', 'moving', 'scaled')
    }
    return Estimate(cameras=clip.cameras, **joined)


def to_scale(
    clip: Clip, seen: Estimate, points: Float[Tensor, 'n h w']
) -> tuple[Estimate, Cameras]:
    """Return depth and cameras of one scale, in metres.

    ``points`` is depth in the unit of the clip's cameras at the pixels where it could be
    triangulated and NaN elsewhere. First one factor for the clip; then every frame for itself is
    brought to its own points, as perception is to the memory.
    """
    usable = ~(points.isnan() | seen.depth.isnan() | seen.moving)
    count = int(usable.sum())
    if count < _ENOUGH:
        raise ValueError(
            f'{count} points could be triangulated, {_ENOUGH} are needed to find the scale: '
            'the camera moves too little, or there is too little to track'
        )
    scale = (points[usable].log() - seen.depth[usable].log()).median().exp()
    cameras = clip.cameras
    if clip.metric:
        seen = replace(seen, depth=seen.depth * scale)
    else:
        world_from_camera = cameras.world_from_camera.clone()
        world_from_camera[:, :3, 3] /= scale
        cameras = replace(cameras, world_from_camera=world_from_camera)
        points = points / scale
    known = ~points.isnan()
    readout = Readout(
        latents=points.new_zeros(len(points), 0, *points.shape[1:]),
        visible=known,
        observed=known,
        depth=points.nan_to_num(0.0),
        age=torch.zeros_like(points),
        offset=points.new_zeros(len(points), 2, *points.shape[1:]),
        depth_ratio=torch.zeros_like(points),
    )
    depth = [
        align(_frame(seen, i), readout[i : i + 1], DEFAULT_ALIGNMENT).depth
        for i in range(len(points))
    ]
    return replace(seen, depth=torch.cat(depth), cameras=cameras), cameras


def _frame(seen: Estimate, i: int) -> Estimate:
    return Estimate(**{name: value[i : i + 1] for name, value in vars(seen).items()})


def triangulate(clip: Clip) -> Float[Tensor, 'n h w']:
    """Return depth of corners that are tracked into other frames, in the cameras' unit, else NaN.

    A corner's inverse depth q is the least-squares solution over all frames that it was followed
    into. There the ray r = R (x, y, 1), turned into the other camera, and its translation t meet
    the pixel (u, v) where u (r_z + t_z q) = r_x + t_x q, and the same for v. Corners that do not
    fit, or whose parallax is small, are dropped.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip.frames.numpy()]
    K = clip.cameras.K.double().numpy()
    world_from_camera = clip.cameras.world_from_camera.double().numpy()
    height, width = grey[0].shape
    depth = np.full((len(grey), height, width), np.nan, np.float32)
    for i, image in enumerate(grey):
        corners = cv2.goodFeaturesToTrack(image, _CORNERS, 0.01, 3)
        if corners is None:
            continue
        corners = corners[:, 0]
        rays = _rays(corners, K[i])
        squares = np.zeros(len(corners))
        products = np.zeros(len(corners))
        equations = []
        for j in (i + step for step in _PARTNERS if 0 <= i + step < len(grey)):
            other_from_this = np.linalg.inv(world_from_camera[j]) @ world_from_camera[i]
            turned, shift = rays @ other_from_this[:3, :3].T, other_from_this[:3, 3]
            found, tracked = _follow(image, grey[j], corners, turned, K[j])
            seen = _rays(found, K[j])
            for axis in (0, 1):
                a = K[j, axis, axis] * (seen[:, axis] * shift[2] - shift[axis]) * tracked
                b = K[j, axis, axis] * (turned[:, axis] - seen[:, axis] * turned[:, 2]) * tracked
                squares += a * a
                products += a * b
                equations.append((a, b))
        if not equations:
            continue
        inverse = products / np.maximum(squares, 1e-12)
        error = np.max([np.abs(a * inverse - b) for a, b in equations], axis=0)
        good = (inverse > 0) & (error < _REPROJECTION) & (np.sqrt(squares) * inverse > _PARALLAX)
        x, y = corners[good].round().astype(int).T
        depth[i, y, x] = 1 / inverse[good]
    return torch.from_numpy(depth)


def _rays(pixels: Float[np.ndarray, 'k 2'], K: Float[np.ndarray, '3 3']):
    """Return rays (k, 3) with z = 1 through pixels."""
    x = (pixels[:, 0] - K[0, 2]) / K[0, 0]
    y = (pixels[:, 1] - K[1, 2]) / K[1, 1]
    return np.stack([x, y, np.ones_like(x)], axis=1)


def _follow(
    image: np.ndarray,
    other: np.ndarray,
    corners: Float[np.ndarray, 'k 2'],
    turned: Float[np.ndarray, 'k 3'],
    K: Float[np.ndarray, '3 3'],
):
    """Track corners into another image from where they are if far away; return positions and
    success."""
    ahead = turned[:, 2] > 0.1
    far = turned[:, :2] / np.where(ahead, turned[:, 2], 1.0)[:, None]
    guess = (far * [K[0, 0], K[1, 1]] + [K[0, 2], K[1, 2]]).astype(np.float32)
    height, width = image.shape
    ahead &= ((guess >= 0) & (guess <= [width - 1, height - 1])).all(axis=1)
    guess[~ahead] = corners[~ahead]
    window: dict[str, Any] = {
        'winSize': (11, 11),
        'maxLevel': 3,
        'flags': cv2.OPTFLOW_USE_INITIAL_FLOW,
    }
    found, there, _ = cv2.calcOpticalFlowPyrLK(
        image, other, corners[:, None], guess[:, None].copy(), **window
    )
    back, again, _ = cv2.calcOpticalFlowPyrLK(
        other, image, found, corners[:, None].copy(), **window
    )
    missed = np.linalg.norm(back[:, 0] - corners, axis=1)
    found = found[:, 0].astype(np.float64)
    tracked = ahead & (there[:, 0] == 1) & (again[:, 0] == 1) & (missed < _TRACK_ERROR)
    return found, tracked
