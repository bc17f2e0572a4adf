"""Estimate cameras from matched features: SIFT and PnP on reference depth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
from jaxtyping import Bool, Float
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import Cameras, unproject
from mirage_model.memory import Readout


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Parameters of SIFT, matching and PnP, and limits for accepting a camera."""

    features: int = 1000
    """SIFT: largest number of features."""

    contrast: float = 0.01
    """SIFT: contrast threshold, lower than OpenCV's since small frames have few features."""

    edge: float = 20.0
    """SIFT: edge threshold."""

    sigma: float = 1.2
    """SIFT: blur of the first octave [px]."""

    ratio: float = 0.8
    """Lowe's ratio of the best to the second-best match."""

    max_error: float = 1.5
    """Largest reprojection error of an inlier [px]."""

    min_inliers: int = 15
    """Smallest number of inliers."""

    min_share: float = 0.4
    """Smallest share of inliers among the matches."""

    max_metres: float = 0.5
    """Largest distance from the planned camera [m]."""

    max_degrees: float = 10.0
    """Largest rotation from the planned camera [deg]."""

    step: float = 0.2
    """Largest relative depth step between neighbouring pixels; features beyond it lie on an edge.
    """


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Cameras of n frames after refinement."""

    cameras: Cameras
    """Refined cameras, and planned ones where refinement failed."""

    refined: Bool[Tensor, 'n']
    """True where the camera was refined."""

    reasons: tuple[str, ...]
    """Reason to keep the planned camera; empty where it was refined."""


def refine(
    frames: Float[Tensor, 'n 3 h w'],
    cameras: Cameras,
    *,
    reference_frames: Float[Tensor, 'm 3 h w'],
    reference_depth: Float[Tensor, 'm h w'],
    reference_cameras: Cameras,
    config: RefineConfig = RefineConfig(),
) -> Refinement:
    """Estimate the camera of each frame by PnP on features matched with reference frames.

    A solution that has too few inliers or is too far from the planned camera is rejected; the
    planned camera is kept.

    Args:
        frames: RGB in 0..1.
        cameras: Planned cameras of ``frames``.
        reference_frames: RGB in 0..1.
        reference_depth: Depth of the references [m]; NaN where unknown.
        reference_cameras: Cameras of the references.
    """
    sift = cv2.SIFT.create(
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
        pixels = np.array([keypoints[i].pt for i, _ in pairs], np.float64).reshape(-1, 2)
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


def refine_to_memory(
    frames: Float[Tensor, 'n 3 h w'],
    cameras: Cameras,
    context_frame: Float[Tensor, '1 3 h w'],
    context_camera: Cameras,
    readout: Readout,
    config: RefineConfig = RefineConfig(),
) -> Refinement:
    """Estimate cameras as `refine`, from the context frame on the memory's depth.

    Args:
        frames: RGB in 0..1.
        cameras: Planned cameras of ``frames``.
        context_frame: Frame before ``frames``, RGB in 0..1.
        context_camera: Its camera.
        readout: The memory at the context camera.
    """
    depth = readout.depth.masked_fill(~readout.visible, torch.nan)
    size = context_frame.shape[-2:]
    return refine(
        frames,
        cameras,
        reference_frames=context_frame,
        reference_depth=F.interpolate(depth[None], size, mode='nearest-exact')[0],
        reference_cameras=context_camera,
        config=config,
    )


def near_plan(
    cameras: Cameras, planned: Cameras, config: RefineConfig = RefineConfig()
) -> Refinement:
    """Return cameras that a perception found; those too far from the plan are planned ones."""
    matrices, reasons = [], []
    for found, plan in zip(cameras.world_from_camera.double(), planned.world_from_camera.double()):
        planned_from_camera = torch.linalg.inv(plan) @ found
        reason = _too_far(planned_from_camera.cpu().numpy(), config)
        matrices.append(plan if reason else found)
        reasons.append(reason)
    world_from_camera = torch.stack(matrices).to(planned.world_from_camera)
    return Refinement(
        cameras=replace(planned, world_from_camera=world_from_camera),
        refined=torch.tensor([not reason for reason in reasons], device=planned.K.device),
        reasons=tuple(reasons),
    )


def _too_far(planned_from_camera: Float[np.ndarray, '4 4'], config: RefineConfig) -> str:
    """Return why a camera is too far from the plan, or ''."""
    metres = float(np.linalg.norm(planned_from_camera[:3, 3]))
    degrees = float(np.degrees(np.linalg.norm(cv2.Rodrigues(planned_from_camera[:3, :3])[0])))
    if metres > config.max_metres or degrees > config.max_degrees:
        return f'the solution is {metres:.2f} m and {degrees:.1f} degrees from the plan'
    return ''


def _landmarks(
    sift: cv2.SIFT,
    frames: Float[Tensor, 'm 3 h w'],
    depth: Float[Tensor, 'm h w'],
    cameras: Cameras,
    config: RefineConfig,
) -> tuple[Float[np.ndarray, 'k 3'], Float[np.ndarray, 'k 128']]:
    """Return world positions and descriptors of features with depth, away from depth edges."""
    inverse = torch.where(torch.isfinite(depth) & (depth > 0), depth, torch.nan).reciprocal()
    around = F.pad(inverse[:, None], (1, 1, 1, 1), mode='replicate')
    near, far = F.max_pool2d(around, 3, stride=1)[:, 0], -F.max_pool2d(-around, 3, stride=1)[:, 0]
    usable = near < far * (1 + config.step)
    points, descriptors = [np.zeros((0, 3))], [np.zeros((0, 128), np.float32)]
    points_in_world = unproject(depth, cameras).double().cpu()
    for frame, mask, frame_points in zip(frames, usable.cpu(), points_in_world):
        keypoints, frame_descriptors = _features(sift, frame)
        positions = np.array([keypoint.pt for keypoint in keypoints], np.float64).reshape(-1, 2)
        pixels = np.round(positions).astype(np.int64)
        valid = mask[pixels[:, 1], pixels[:, 0]].numpy()
        points.append(frame_points[pixels[valid, 1], pixels[valid, 0]].numpy())
        descriptors.append(frame_descriptors[valid])
    return np.concatenate(points), np.concatenate(descriptors)


def _features(
    sift: cv2.SIFT, frame: Float[Tensor, '3 h w']
) -> tuple[list[cv2.KeyPoint], Float[np.ndarray, 'k 128']]:
    grey = frame.clamp(0, 1).mul(255).round().byte().movedim(0, -1).cpu().numpy()
    detector: Any = sift  # the stubs do not allow None for the mask
    keypoints, descriptors = detector.detectAndCompute(
        cv2.cvtColor(grey, cv2.COLOR_RGB2GRAY), None
    )
    return list(keypoints), np.zeros((0, 128), np.float32) if descriptors is None else descriptors


def _matches(
    descriptors: Float[np.ndarray, 'a 128'],
    landmarks: Float[np.ndarray, 'b 128'],
    config: RefineConfig,
) -> list[tuple[int, int]]:
    """Return pairs (feature, landmark) that pass the ratio test, each landmark at most once."""
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
    """Return world_from_camera and an empty reason, or the planned camera and why it is kept."""
    if len(pixels) < config.min_inliers:
        return world_from_planned, f'{len(pixels)} matches, {config.min_inliers} are needed'
    rotation, origin = world_from_planned[:3, :3], world_from_planned[:3, 3]
    points_in_planned = (points_in_world - origin) @ rotation
    no_distortion: Any = None  # the stubs do not allow None
    cv2.setRNGSeed(0)
    solved, rotation_vector, translation, inliers = cv2.solvePnPRansac(
        points_in_planned,
        pixels,
        K,
        no_distortion,
        iterationsCount=300,
        reprojectionError=config.max_error,
        confidence=0.999,
        flags=cv2.SOLVEPNP_SQPNP,
    )
    agreeing = 0 if not solved or inliers is None else len(inliers)
    if agreeing < max(config.min_inliers, config.min_share * len(pixels)):
        return world_from_planned, f'{agreeing} of {len(pixels)} matches agree on a camera'
    inliers = inliers[:, 0]
    rotation_vector, translation = cv2.solvePnPRefineLM(
        points_in_planned[inliers], pixels[inliers], K, no_distortion, rotation_vector, translation
    )
    camera_from_planned = np.eye(4)
    camera_from_planned[:3, :3] = cv2.Rodrigues(rotation_vector)[0]
    camera_from_planned[:3, 3] = translation[:, 0]
    planned_from_camera = np.linalg.inv(camera_from_planned)
    reason = _too_far(planned_from_camera, config)
    return (world_from_planned if reason else world_from_planned @ planned_from_camera), reason
