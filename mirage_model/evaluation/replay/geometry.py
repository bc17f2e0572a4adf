"""Camera control and consistency of imagined frames, measured with known depth."""

from __future__ import annotations

from dataclasses import dataclass
import math

from jaxtyping import Float, Float64
from kornia.geometry.depth import warp_frame_depth
import numpy as np
from scipy.spatial.transform import Rotation
import torch
from torch import Tensor

from mirage_model.camera import Cameras, invert, project, unproject
from mirage_model.metrics import psnr
from mirage_model.perception.pose_refinement import RefineConfig, refine

ANYWHERE = RefineConfig(max_metres=math.inf, max_degrees=math.inf)
"""Cameras are found from the matches alone, however far they lie from the plan."""
_SAME_SURFACE = 0.05  # share of the depth
GAP = 4
"""Distance between compared frames: one latent frame of Wan."""
METRICS = (
    'camera_found',
    'turn_error_deg',
    'shift_error_m',
    'consistency_db',
    'true_consistency_db',
)
"""Metrics of each frame; the last two compare it with the frame `GAP` later, imagined and
recorded."""


@dataclass(frozen=True, kw_only=True)
class CameraControl:
    """Pose errors of each frame, NaN where no camera was found; ``reasons`` has why."""

    degrees: Float64[np.ndarray, 'n']
    metres: Float64[np.ndarray, 'n']
    reasons: tuple[str, ...]

    @property
    def failure_rate(self) -> float:
        return float(np.isnan(self.degrees).mean())


def camera_control(
    frames: Float[Tensor, 'n 3 h w'],
    planned: Cameras,
    *,
    reference_frames: Float[Tensor, 'm 3 h w'],
    reference_depth: Float[Tensor, 'm h w'],
    reference_cameras: Cameras,
) -> CameraControl:
    """Estimate the cameras of frames by features matched to frames of known depth, and PnP."""
    found = refine(
        frames,
        planned,
        reference_frames=reference_frames,
        reference_depth=reference_depth,
        reference_cameras=reference_cameras,
        config=ANYWHERE,
    )
    degrees, metres = pose_errors(
        found.cameras.world_from_camera.double().cpu().numpy(),
        planned.world_from_camera.double().cpu().numpy(),
    )
    lost = ~found.refined.cpu().numpy()
    degrees[lost] = metres[lost] = math.nan
    return CameraControl(degrees=degrees, metres=metres, reasons=found.reasons)


def pose_errors(
    world_from_found: Float64[np.ndarray, 'n 4 4'],
    world_from_planned: Float64[np.ndarray, 'n 4 4'],
) -> tuple[Float64[np.ndarray, 'n'], Float64[np.ndarray, 'n']]:
    """Return the angle between the two [deg] and the distance of their centres [m]."""
    found, planned = world_from_found[:, :3, :3], world_from_planned[:, :3, :3]
    turn = Rotation.from_matrix(planned.transpose(0, 2, 1) @ found)
    metres = np.linalg.norm(world_from_found[:, :3, 3] - world_from_planned[:, :3, 3], axis=1)
    return np.degrees(turn.magnitude()), metres


def consistency(
    frames: Float[Tensor, 'n 3 h w'], depth: Float[Tensor, 'n h w'], cameras: Cameras, *, gap: int
) -> list[float]:
    """Return the PSNR [dB] between each frame and the frame ``gap`` later, warped by the true
    depth.

    It is taken over the pixels whose surface both see, NaN where there is none. True frames give
    the upper bound.
    """
    valid = torch.isfinite(depth) & (depth > 0)
    filled = depth.where(valid, torch.ones_like(depth))
    result = []
    for i in range(len(frames) - gap):
        here, there = cameras[i : i + 1], cameras[i + gap : i + gap + 1]
        there_from_here = invert(there.world_from_camera) @ here.world_from_camera
        source = torch.cat([frames, filled[:, None], valid[:, None].to(frames)], dim=1)
        warped = warp_frame_depth(
            source[i + gap : i + gap + 1], filled[i : i + 1, None], there_from_here, there.K
        )[0]
        points = unproject(filled[i : i + 1], here).reshape(1, -1, 3)
        expected = project(points, there)[1].reshape(depth.shape[1:])
        seen = valid[i] & (warped[4] > 0.999) & (expected > 0)
        seen &= (warped[3] - expected).abs() < _SAME_SURFACE * expected
        result.append(psnr(frames[i], warped[:3], seen))
    return result


def geometry(
    frames: Float[Tensor, 'n 3 h w'],
    recorded: Float[Tensor, 'n 3 h w'],
    depth: Float[Tensor, 'n h w'],
    cameras: Cameras,
) -> list[dict[str, float]]:
    """Return `METRICS` of each frame, NaN where they are unknown.

    Each imagined frame is matched to the frame recorded at its planned camera.
    """
    rows = []
    after = [math.nan] * min(GAP, len(frames))
    imagined = [*consistency(frames, depth, cameras, gap=GAP), *after]
    true = [*consistency(recorded, depth, cameras, gap=GAP), *after]
    for i in range(len(frames)):
        here = slice(i, i + 1)
        control = camera_control(
            frames[here],
            cameras[here],
            reference_frames=recorded[here],
            reference_depth=depth[here],
            reference_cameras=cameras[here],
        )
        values = (
            1.0 - control.failure_rate,
            float(control.degrees[0]),
            float(control.metres[0]),
            imagined[i],
            true[i],
        )
        rows.append(dict(zip(METRICS, values)))
    return rows
