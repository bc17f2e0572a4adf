"""Depth registered to another camera equals a loop over pixels."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from mirage_model.messages.depth_registration import DepthCamera, register_depth


def one_by_one(depth, camera, K, size):
    """Move each pixel of the depth to the pixel of the image that its point falls on."""
    found = np.full(size, np.nan, np.float32)
    for v, u in np.ndindex(depth.shape):
        point = np.linalg.inv(camera.K) @ [u, v, 1.0] * depth[v, u]
        x, y, z = camera.image_from_depth[:3, :3] @ point + camera.image_from_depth[:3, 3]
        if not z > 0:
            continue
        column, row = (int(np.floor(c + 0.5)) for c in (K @ [x / z, y / z, 1.0])[:2])
        if 0 <= column < size[1] and 0 <= row < size[0]:
            found[row, column] = np.fmin(found[row, column], np.float32(z))
    return found


def test_registration_equals_one_pixel_after_the_other():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 4, (20, 30)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.2] = np.nan
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0.05, -0.1, 0.02]).as_matrix()
    pose[:3, 3] = 0.1, -0.05, 0.02
    own = np.array([[30, 0, 14.5], [0, 31, 9.5], [0, 0, 1.0]])
    camera = DepthCamera(frame='depth', K=own, size=depth.shape, image_from_depth=pose)
    K = np.array([[25, 0, 12.0], [0, 24, 8.0], [0, 0, 1.0]])
    registered = register_depth(depth, camera, K=K, size=(18, 26))
    np.testing.assert_allclose(registered, one_by_one(depth, camera, K, (18, 26)), rtol=1e-6)


def test_a_larger_image_has_no_holes():
    depth = np.full((10, 16), 2.0, np.float32)
    K = np.array([[10, 0, 7.5], [0, 10, 4.5], [0, 0, 1.0]])
    camera = DepthCamera(frame='depth', K=K, size=depth.shape, image_from_depth=np.eye(4))
    larger = np.array([[20, 0, 15.5], [0, 20, 9.5], [0, 0, 1.0]])
    registered = register_depth(depth, camera, K=larger, size=(20, 32))
    assert (registered == 2.0).all()
