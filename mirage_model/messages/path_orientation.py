"""Orientations of a nav_msgs/Path, which some planners send and some leave out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float64
import numpy as np

from mirage_model.messages.doubts import Doubts
from mirage_model.messages.poses import matrices_from_poses, matrices_from_positions

Orientation = Literal['auto', 'as_sent', 'along_path']
"""Source of the orientations of a path; auto finds it from the path."""

MOVED = 1e-3
"""Length of a step that has a direction [m]."""
SHORT = 0.1
"""Length of a path up to which its direction says nothing [m]."""
ASIDE = np.deg2rad(30.0)
"""Angle between the x axis of a pose and the direction of travel that is doubtful."""
_REMEDY = 'path.orientation as_sent or along_path settles it'


def read_path(
    poses: Sequence[Any], *, orientation: Orientation, doubts: Doubts
) -> Float64[np.ndarray, 'n 4 4']:
    """Return the matrices of a path's geometry_msgs/Pose.

    With ``along_path`` each pose looks to the next position, level in the frame of the path. NavFn
    and other planners in two dimensions give all poses but the last, which has the goal's, one
    orientation, or none: ``auto`` takes the direction of travel where no orientation is given, or
    where it never turns and the path bends or leaves the direction of the identity.

    Raises:
        ValueError: As `matrices_from_poses`, or there is no direction for want of motion.
    """
    if orientation == 'as_sent' or len(poses) < 2:
        return matrices_from_poses(poses)
    quaternions = np.array([[getattr(p.orientation, axis) for axis in 'xyzw'] for p in poses])
    placed = matrices_from_positions(poses)
    steps = np.diff(placed[:, :2, 3], axis=0)
    way = np.linalg.norm(steps, axis=1)
    moves = way > MOVED
    unset = bool((quaternions[:-1] == 0).all())
    if not moves.any():
        return matrices_from_poses(poses)
    if orientation == 'along_path':
        return _along(placed, steps, moves)
    if unset:
        doubts.warn(
            'path_orientation',
            'path: the orientations are zero, so its poses look along it',
            remedy=_REMEDY,
        )
        return _along(placed, steps, moves)
    sent = matrices_from_poses(poses)
    first, inner = quaternions[0], quaternions[:-1]
    turns = np.abs(np.abs(inner @ first) - first @ first) > 1e-9
    if turns.any() or way.sum() < SHORT:
        return sent
    course = np.arctan2(steps[moves, 1], steps[moves, 0])
    heading = np.arctan2(sent[0, 1, 0], sent[0, 0, 0])
    aside, bend = (np.abs(_wrapped(course - angle)).max() for angle in (heading, course[0]))
    if aside < ASIDE:
        return sent
    identity = np.allclose(np.abs(first), [0, 0, 0, 1], atol=1e-9)
    text = (
        f'path: its {len(inner)} orientations before the last never turn, but it leaves their '
        f'direction by up to {np.rad2deg(aside):.0f} degrees'
    )
    if identity or bend > ASIDE:
        text += ', as where a planner makes none, so its poses look along it'
        doubts.warn('path_orientation', text, remedy=_REMEDY)
        return _along(placed, steps, moves)
    text += ': the robot is taken to move sideways or backwards'
    doubts.warn('path_orientation', text, remedy=_REMEDY)
    return sent


def _along(
    placed: Float64[np.ndarray, 'n 4 4'],
    steps: Float64[np.ndarray, 'k 2'],
    moves: np.ndarray,
) -> Float64[np.ndarray, 'n 4 4']:
    """Return poses that look to the next place; the last, and those that stay, as far as known."""
    places = np.flatnonzero(moves)
    following = places[np.searchsorted(places, np.arange(len(placed))).clip(max=len(places) - 1)]
    yaw = np.arctan2(steps[following, 1], steps[following, 0])
    turned = placed.copy()
    turned[:, 0, 0], turned[:, 0, 1] = np.cos(yaw), -np.sin(yaw)
    turned[:, 1, 0], turned[:, 1, 1] = np.sin(yaw), np.cos(yaw)
    return turned


def _wrapped(angle: Float64[np.ndarray, 'n']) -> Float64[np.ndarray, 'n']:
    return (angle + np.pi) % (2 * np.pi) - np.pi
