"""Cameras found anew from what is in the frames: matched features and PnP on known depth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
from jaxtyping import Bool, Float
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import Cameras, unproject


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """How features are found, and when a camera is believed.

    ``features``, ``contrast``, ``edge`` and ``sigma`` are SIFT's own, more generous than OpenCV's
    since small frames have few features. ``ratio`` is Lowe's; ``max_error`` is an inlier's
    reprojection error in pixels; ``min_inliers`` and ``min_share`` (of the matches) must agree; a
    camera further from its plan than ``max_metres`` or ``max_degrees`` is taken for a wrong match.
    Features whose depth varies by more than the share ``step`` over the neighbouring pixels are
    left out: they lie on a depth edge.
    """

    features: int = 1000
    contrast: float = 0.01
    edge: float = 20.0
    sigma: float = 1.2
    ratio: float = 0.8
    max_error: float = 1.5
    min_inliers: int = 15
    min_share: float = 0.4
    max_metres: float = 0.5
    max_degrees: float = 10.0
    step: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """``reasons`` says why a frame's planned camera was kept; empty where it was refined."""

    cameras: Cameras
    refined: Bool[Tensor, 'n']
    reasons: tuple[str, ...]


def refine(
    frames: Float[Tensor, 'n 3 h w'],
    cameras: Cameras,
    *,
    reference_frames: Float[Tensor, 'm 3 h w'],
    reference_depth: Float[Tensor, 'm h w'],
    reference_cameras: Cameras,
    config: RefineConfig = RefineConfig(),
) -> Refinement:
    """Cameras of ``frames`` that agree with the references and their depth (NaN where unknown).

    Features of every frame are matched against those of all references, whose places in the world
    are known: the camera is the one that reprojects most of them, refined on those. It is found
    from the matches alone; the planned camera serves to refuse wild answers, and is kept, with the
    reason, where that fails.
    """
    sift = cv2.SIFT_create(
        nfeatures=config.features,
        contrastThreshold=config.contrast,
        edgeThreshold=config.edge,
        sigma=config.sigma,
    )
    points_in_world, landmarks = _landmarks(
        sift, reference_frames, reference_depth, reference_cameras, config
    )
    solved = []
    for frame, K, world_from_camera in zip(
        frames, cameras.K.double().cpu().numpy(), cameras.world_from_camera.double().cpu().numpy()
    ):
        keypoints, descriptors = _features(sift, frame)
        pairs = _matches(descriptors, landmarks, config)
        pixels = np.float64([keypoints[i].pt for i, _ in pairs]).reshape(-1, 2)
        matched_in_world = points_in_world[[j for _, j in pairs]]
        solved.append(_locate(pixels, matched_in_world, K, world_from_camera, config))
    world_from_camera = torch.from_numpy(np.stack([matrix for matrix, _ in solved]))
    reasons = tuple(reason for _, reason in solved)
    return Refinement(
        cameras=replace(
            cameras, world_from_camera=world_from_camera.to(cameras.world_from_camera)
        ),
        refined=torch.tensor([not reason for reason in reasons], device=cameras.K.device),
        reasons=reasons,
    )


def _landmarks(
    sift: cv2.SIFT,
    frames: Float[Tensor, 'm 3 h w'],
    depth: Float[Tensor, 'm h w'],
    cameras: Cameras,
    config: RefineConfig,
) -> tuple[Float[np.ndarray, 'k 3'], Float[np.ndarray, 'k 128']]:
    """Places in the world and descriptors of all features of known depth away from depth edges."""
    inverse = torch.where(torch.isfinite(depth) & (depth > 0), depth, torch.nan).reciprocal()
    around = F.pad(inverse[:, None], (1, 1, 1, 1), mode='replicate')
    near, far = F.max_pool2d(around, 3, stride=1)[:, 0], -F.max_pool2d(-around, 3, stride=1)[:, 0]
    usable = near < far * (1 + config.step)
    points, descriptors = [np.zeros((0, 3))], [np.zeros((0, 128), np.float32)]
    for frame, good, places in zip(frames, usable.cpu(), unproject(depth, cameras).double().cpu()):
        found, described = _features(sift, frame)
        pixels = np.int64([np.round(keypoint.pt) for keypoint in found]).reshape(-1, 2)
        known = good[pixels[:, 1], pixels[:, 0]].numpy()
        points.append(places[pixels[known, 1], pixels[known, 0]].numpy())
        descriptors.append(described[known])
    return np.concatenate(points), np.concatenate(descriptors)


def _features(
    sift: cv2.SIFT, frame: Float[Tensor, '3 h w']
) -> tuple[list[cv2.KeyPoint], Float[np.ndarray, 'k 128']]:
    grey = frame.clamp(0, 1).mul(255).round().byte().movedim(0, -1).cpu().numpy()
    keypoints, descriptors = sift.detectAndCompute(cv2.cvtColor(grey, cv2.COLOR_RGB2GRAY), None)
    return list(keypoints), np.zeros((0, 128), np.float32) if descriptors is None else descriptors


def _matches(
    descriptors: Float[np.ndarray, 'a 128'],
    landmarks: Float[np.ndarray, 'b 128'],
    config: RefineConfig,
) -> list[tuple[int, int]]:
    """Pairs (feature, landmark), best first, no feature and no landmark twice."""
    if len(descriptors) == 0 or len(landmarks) < 2:
        return []
    candidates = [
        best
        for best, second in cv2.BFMatcher().knnMatch(descriptors, landmarks, k=2)
        if best.distance < config.ratio * second.distance
    ]
    pairs: dict[int, int] = {}
    for match in sorted(candidates, key=lambda match: match.distance):
        pairs.setdefault(match.trainIdx, match.queryIdx)
    return [(feature, landmark) for landmark, feature in pairs.items()]


def _locate(
    pixels: Float[np.ndarray, 'k 2'],
    points_in_world: Float[np.ndarray, 'k 3'],
    K: Float[np.ndarray, '3 3'],
    world_from_planned: Float[np.ndarray, '4 4'],
    config: RefineConfig,
) -> tuple[Float[np.ndarray, '4 4'], str]:
    """world_from_camera and an empty reason, or the planned one and why it was kept."""
    if len(pixels) < config.min_inliers:
        return world_from_planned, f'{len(pixels)} matches, {config.min_inliers} are needed'
    rotation, origin = world_from_planned[:3, :3], world_from_planned[:3, 3]
    points_in_planned = (points_in_world - origin) @ rotation
    cv2.setRNGSeed(0)
    found, turn, shift, inliers = cv2.solvePnPRansac(
        points_in_planned,
        pixels,
        K,
        None,
        iterationsCount=300,
        reprojectionError=config.max_error,
        confidence=0.999,
        flags=cv2.SOLVEPNP_SQPNP,
    )
    agreeing = 0 if not found or inliers is None else len(inliers)
    if agreeing < max(config.min_inliers, config.min_share * len(pixels)):
        return world_from_planned, f'{agreeing} of {len(pixels)} matches agree on a camera'
    inliers = inliers[:, 0]
    turn, shift = cv2.solvePnPRefineLM(
        points_in_planned[inliers], pixels[inliers], K, None, turn, shift
    )
    camera_from_planned = np.eye(4)
    camera_from_planned[:3, :3] = cv2.Rodrigues(turn)[0]
    camera_from_planned[:3, 3] = shift[:, 0]
    planned_from_camera = np.linalg.inv(camera_from_planned)
    metres = float(np.linalg.norm(planned_from_camera[:3, 3]))
    degrees = float(np.degrees(np.linalg.norm(turn)))
    if metres > config.max_metres or degrees > config.max_degrees:
        return world_from_planned, f'found {metres:.2f} m and {degrees:.1f} degrees from the plan'
    return world_from_planned @ planned_from_camera, ''
