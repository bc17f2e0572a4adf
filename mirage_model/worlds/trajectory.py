"""Random camera trajectories through the floor plan of a simulated world.

The world frame has z up; lengths are metres and yaw counts from x to y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import no_type_check

import numba
import numpy as np

KINDS = ('forward', 'turn', 'out_and_back', 'wander')


@dataclass(frozen=True, kw_only=True)
class FloorPlan:
    """Walls and walkable ground on which trajectories are planned; lengths are in metres."""

    walls: np.ndarray
    """(n, 4) segments x1 y1 x2 y2 that a walker cannot cross."""
    low: np.ndarray
    """(2,) smallest x and y of the plan."""
    high: np.ndarray
    """(2,) largest x and y of the plan."""
    inside: Callable[[float, float], bool]
    """Whether the point (x, y) is walkable ground."""
    clearance: float
    """Distance that a walker keeps from walls."""
    min_ahead: float
    """Free distance ahead of the first pose, at least."""
    min_around: float
    """Mean free distance in eight directions around the first pose, at least."""

    def free(self, x: float, y: float, yaw: float) -> float:
        """Return the distance to the first wall along ``yaw`` [m]; 0 if no wall lies there."""
        distances, _ = crossings(x, y, np.cos(yaw), np.sin(yaw), self.walls)
        return distances[0] if len(distances) else 0.0


def world_from_optical(x: float, y: float, z: float, yaw: float) -> np.ndarray:
    """Return world_from_camera (4, 4) of a level camera at (x, y, z) [m].

    The camera looks along ``yaw`` [rad], counted from x (east) to y (north).
    """
    forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, [0.0, 0.0, -1.0], forward], axis=1)
    matrix[:3, 3] = x, y, z
    return matrix


def plan(
    floor: FloorPlan,
    kind: str,
    frames: int,
    rng: np.random.Generator,
    *,
    rate: float,
    height: float,
) -> np.ndarray:
    """Return world_from_camera (frames, 4, 4) of a random trajectory that keeps clear of walls.

    Args:
        floor: Plan of the world; the first pose is a random open place on it.
        kind: 'forward' moves towards open space. 'turn' rotates in place. 'wander' moves and looks
            around. 'out_and_back' wanders and returns backwards through the same poses, so that
            the last pose equals the first.
        rate: Frames per second.
        height: Height of the camera over z = 0 [m].

    Raises:
        ValueError: If ``kind`` is not one of `KINDS`.
    """
    if kind not in KINDS:
        raise ValueError(f'kind: {kind!r} is unknown, must be one of {KINDS}')
    if kind == 'out_and_back':
        out = plan(floor, 'wander', (frames + 1) // 2, rng, rate=rate, height=height)
        back = out[::-1] if frames % 2 == 0 else out[-2::-1]
        return np.concatenate([out, back])
    x, y, yaw = _open_place(floor, rng)
    speed = 0.0 if kind == 'turn' else rng.uniform(0.6, 1.6) / rate
    swing = {'forward': 0.0, 'turn': rng.uniform(15, 40), 'wander': rng.uniform(10, 35)}[kind]
    swing = np.radians(swing) / rate * rng.choice([-1, 1])
    poses, turn = [], 0.0
    for _ in range(frames):
        poses.append(world_from_optical(x, y, height, yaw))
        if kind == 'turn':
            yaw += swing
            continue
        if kind == 'wander' and rng.random() < 0.04:
            swing = -swing
        bend = np.radians(np.array([0.0, -15.0, 15.0, -35.0, 35.0, -70.0, 70.0]))
        free = np.array([floor.free(x, y, yaw + b) for b in bend])
        wanted = bend[np.argmax(np.minimum(free, 10.0) - 1.875 * np.abs(bend))]
        limit = np.radians(45.0) / rate
        turn += 0.5 * (np.clip(0.4 * wanted + swing, -limit, limit) - turn)
        yaw += turn
        step = min(speed, max(0.0, 0.15 * (floor.free(x, y, yaw) - 2 * floor.clearance)))
        nx, ny = x + step * np.cos(yaw), y + step * np.sin(yaw)
        if clearance(nx, ny, floor.walls) >= min(floor.clearance, clearance(x, y, floor.walls)):
            x, y = nx, ny
    return np.stack(poses)


def _open_place(floor: FloorPlan, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return x, y [m] and yaw [rad] of a random place with a free view, by rejection sampling."""
    for _ in range(100_000):
        x, y = rng.uniform(floor.low, floor.high)
        yaw = rng.uniform(-np.pi, np.pi)
        if not floor.inside(x, y) or floor.free(x, y, yaw) < floor.min_ahead:
            continue
        around = [floor.free(x, y, yaw + a) for a in np.linspace(0, 2 * np.pi, 8, endpoint=False)]
        if (
            np.mean(around) > floor.min_around
            and clearance(x, y, floor.walls) > 1.5 * floor.clearance
        ):
            return x, y, yaw
    raise RuntimeError('floor: no open place in 100000 samples, a trajectory cannot start')


@numba.njit(cache=True)
@no_type_check
def crossings(x, y, dx, dy, lines):
    """Return the segments that the ray from (x, y) along (dx, dy) crosses, nearest first.

    Args:
        lines: (n, 4) segments x1 y1 x2 y2.

    Returns:
        Distances (k,) in lengths of (dx, dy), and indices (k,) into ``lines``.
    """
    distance = np.empty(len(lines))
    index = np.empty(len(lines), dtype=np.int64)
    count = 0
    for i in range(len(lines)):
        ax, ay = lines[i, 0] - x, lines[i, 1] - y
        ex, ey = lines[i, 2] - lines[i, 0], lines[i, 3] - lines[i, 1]
        det = dx * ey - dy * ex
        if det == 0.0:
            continue
        t = (ax * ey - ay * ex) / det
        u = (ax * dy - ay * dx) / det
        if t > 1e-6 and 0.0 <= u <= 1.0:
            distance[count] = t
            index[count] = i
            count += 1
    order = np.argsort(distance[:count])
    return distance[:count][order], index[:count][order]


@numba.njit(cache=True)
@no_type_check
def clearance(x, y, lines):
    """Return the distance from (x, y) to the nearest of the segments ``lines`` (n, 4)."""
    best = np.inf
    for i in range(len(lines)):
        ex, ey = lines[i, 2] - lines[i, 0], lines[i, 3] - lines[i, 1]
        px, py = x - lines[i, 0], y - lines[i, 1]
        length = ex * ex + ey * ey
        u = min(max((px * ex + py * ey) / length, 0.0), 1.0) if length > 0.0 else 0.0
        best = min(best, np.hypot(px - u * ex, py - u * ey))
    return best
