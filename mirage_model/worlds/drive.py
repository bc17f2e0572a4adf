"""Trajectories through the floor plan of a simulated world.

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
class Floor:
    """Floor plan on which trajectories are planned.

    ``walls`` (n, 4) x1 y1 x2 y2 stop a walker, who keeps ``clearance`` from them. ``inside`` says
    whether a place is ground that can be walked. A drive begins where there are ``view`` metres of
    free sight ahead and ``room`` metres on average all around.
    """

    walls: np.ndarray
    low: np.ndarray
    high: np.ndarray
    inside: Callable[[float, float], bool]
    clearance: float
    view: float
    room: float

    def free(self, x: float, y: float, yaw: float) -> float:
        """Return the distance to the first wall [m]; 0 outside, where there is none."""
        distances, _ = crossings(x, y, np.cos(yaw), np.sin(yaw), self.walls)
        return distances[0] if len(distances) else 0.0


def world_from_optical(x: float, y: float, z: float, yaw: float) -> np.ndarray:
    """Return a level camera at (x, y, z) [m] that looks along ``yaw`` [rad], from east to
    north."""
    forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, [0.0, 0.0, -1.0], forward], axis=1)
    matrix[:3, 3] = x, y, z
    return matrix


def plan(
    floor: Floor,
    kind: str,
    frames: int,
    rng: np.random.Generator,
    *,
    rate: float,
    height: float,
) -> np.ndarray:
    """Return a trajectory of poses (frames, 4, 4) that keeps clear of walls, from a random place.

    ``kind``: 'forward' drives towards open space, 'turn' turns in place, 'out_and_back' drives and
    backs up along the same poses, so that the last is the first, 'wander' drives and looks around.
    ``rate`` is in frames a second, ``height`` in metres over the world's zero.
    """
    if kind not in KINDS:
        raise ValueError(f'kind must be one of {KINDS}, got {kind!r}')
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


def _open_place(floor: Floor, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return a place and heading with a free view, by rejection sampling."""
    for _ in range(100_000):
        x, y = rng.uniform(floor.low, floor.high)
        yaw = rng.uniform(-np.pi, np.pi)
        if not floor.inside(x, y) or floor.free(x, y, yaw) < floor.view:
            continue
        around = [floor.free(x, y, yaw + a) for a in np.linspace(0, 2 * np.pi, 8, endpoint=False)]
        if np.mean(around) > floor.room and clearance(x, y, floor.walls) > 1.5 * floor.clearance:
            return x, y, yaw
    raise RuntimeError('floor: no open place to start from')


@numba.njit(cache=True)
@no_type_check
def crossings(x, y, dx, dy, lines):
    """Return distances along (dx, dy), nearest first, and indices of the lines that a ray
    crosses."""
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
    """Return the distance from a point to the nearest line segment."""
    best = np.inf
    for i in range(len(lines)):
        ex, ey = lines[i, 2] - lines[i, 0], lines[i, 3] - lines[i, 1]
        px, py = x - lines[i, 0], y - lines[i, 1]
        length = ex * ex + ey * ey
        u = min(max((px * ex + py * ey) / length, 0.0), 1.0) if length > 0.0 else 0.0
        best = min(best, np.hypot(px - u * ex, py - u * ey))
    return best
