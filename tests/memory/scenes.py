"""Random cameras and points, rich in ties, duplicates, borders, infinity and NaN."""

from __future__ import annotations

from hypothesis import strategies as st
import numpy as np
from scipy.spatial.transform import Rotation
import torch

from mirage_model.camera import Cameras
from mirage_model.memory.visibility import Splats, VisibilityRule

HEIGHT, WIDTH = 4, 6


def camera_row(
    world_from_camera, times=None, *, height=HEIGHT, width=WIDTH, fx=4.0, fy=4.0
) -> Cameras:
    """Return cameras that look through the middle of a small grid."""
    world_from_camera = torch.as_tensor(np.array(world_from_camera), dtype=torch.float32)
    n = len(world_from_camera)
    K = torch.tensor([[fx, 0, (width - 1) / 2], [0, fy, (height - 1) / 2], [0, 0, 1]])
    return Cameras(
        K=K.repeat(n, 1, 1),
        world_from_camera=world_from_camera,
        times=torch.arange(n, dtype=torch.float64)
        if times is None
        else torch.as_tensor(times, dtype=torch.float64),
        height=height,
        width=width,
    )


def transform(rotation_vector=(0, 0, 0), translation=(0, 0, 0)) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = Rotation.from_rotvec(rotation_vector).as_matrix()
    result[:3, 3] = translation
    return result


@st.composite
def cameras(draw, max_cameras: int = 3) -> Cameras:
    small = st.sampled_from([0.0, 0.0, 0.5, -0.25, 1.0])
    poses = [
        transform([draw(small) for _ in range(3)], [draw(small) for _ in range(3)])
        for _ in range(draw(st.integers(1, max_cameras)))
    ]
    times = 1.7e9 + np.arange(len(poses)) / 8
    focal = st.sampled_from([2.0, 4.0, 4.8])
    return camera_row(poses, times, fx=draw(focal), fy=draw(focal))


@st.composite
def points(draw, max_points: int = 24, finite: bool = False) -> Splats:
    """Return points on a coarse lattice, many of which project alike, and arbitrary points."""
    lattice = st.sampled_from([-1.0, -0.25, 0.0, 0.125, 0.25, 0.5, 1.0, 2.0])
    wild = st.floats(-1e6, 1e6, width=32)
    if not finite:
        wild |= st.sampled_from([float('nan'), float('inf'), float('-inf'), 3e38, 1e-40])
    coordinate = st.one_of(lattice, lattice, lattice, wild)
    count = draw(st.integers(0, max_points))
    rows = [[draw(coordinate) for _ in range(3)] for _ in range(count)]
    sizes = [draw(st.sampled_from([0.01, 0.25, 0.5, 2.0])) for _ in range(count)]
    return Splats(
        position=torch.tensor(rows, dtype=torch.float32).reshape(count, 3),
        size=torch.tensor(sizes, dtype=torch.float32),
        observed=torch.tensor([draw(st.booleans()) for _ in range(count)], dtype=torch.bool),
    )


rules = st.builds(
    VisibilityRule,
    splat_size=st.sampled_from([1, 3, 5]),
    tolerance=st.sampled_from([0.0, 0.05, 0.25]),
    near=st.sampled_from([0.05, 0.5]),
    far=st.sampled_from([1.0, 50.0, 1e6]),
)
