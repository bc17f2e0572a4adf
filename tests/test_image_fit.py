"""Images, depth and K fitted to a size belong together."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mirage_model.image_fit import crop, fit_depth, fit_image, fit_K

HEIGHT, WIDTH = 32, 48
SIZES = [(48, 64), (100, 90), (31, 77), (20, 30), (32, 48)]


def K_of(size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return np.array([[40.0, 0.0, width * 0.4], [0.0, 50.0, height * 0.6], [0.0, 0.0, 1.0]])


def slopes(K: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image whose two colours are x / z and y / z of the rays through its pixels."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1]], -1).astype(np.float32)


@pytest.mark.parametrize('size', SIZES)
def test_fitted_image_is_that_of_the_fitted_K(size):
    K = K_of(size)
    fitted = fit_image(slopes(K, size), HEIGHT, WIDTH)
    expected = slopes(fit_K(K, size, HEIGHT, WIDTH), (HEIGHT, WIDTH))
    inner = (slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(fitted[inner], expected[inner], atol=3e-3)  # a tenth of a pixel


@pytest.mark.parametrize('size', SIZES)
def test_projected_point_lands_on_the_same_place(size):
    """The pixel of a point, cropped and scaled by OpenCV's affine warp, is its pixel in the fitted
    image."""
    K, point = K_of(size), np.array([0.02, -0.03, 1.0])
    before, after = K @ point, fit_K(K, size, HEIGHT, WIDTH) @ point
    part = crop(np.dstack(np.meshgrid(np.arange(size[1]), np.arange(size[0]))), HEIGHT, WIDTH)
    corners = np.float32([part[0, 0] - 0.5, part[0, -1] + [0.5, -0.5], part[-1, 0] + [-0.5, 0.5]])
    target = np.float32([[-0.5, -0.5], [WIDTH - 0.5, -0.5], [-0.5, HEIGHT - 0.5]])
    np.testing.assert_allclose(
        cv2.getAffineTransform(corners, target) @ before, after[:2], atol=1e-4
    )


def test_crop_is_the_largest_about_the_centre():
    image = np.arange(6 * 10).reshape(6, 10)
    np.testing.assert_array_equal(crop(image, 3, 3), image[:, 2:8])
    np.testing.assert_array_equal(crop(image, 2, 5), image[1:5])


def test_fitted_depth_is_never_blended():
    depth = np.where(np.arange(50)[None] < 23, 1.0, 9.0).repeat(40, axis=0).astype(np.float32)
    assert set(np.unique(fit_depth(depth, 8, 12))) == {1.0, 9.0}
    assert 1.0 < np.unique(fit_image(depth, 8, 12))[1] < 9.0
