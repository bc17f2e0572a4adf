"""Check depth and cameras by warping a frame into another camera."""

from __future__ import annotations

import cv2
import numpy as np

from mirage_model.camera import project, unproject
from mirage_model.clip import Clip


def warp_psnr(clip: Clip, i: int, j: int) -> tuple[float, float]:
    """Return PSNR [dB] against frame j of frame i warped to camera j, and of frame i unwarped.

    Only pixels of frame j that are visible in frame i and static in both count.
    """
    cameras, (height, width) = clip.cameras, clip.frames.shape[1:3]
    points = unproject(clip.depth[j : j + 1], cameras[j : j + 1]).reshape(1, -1, 3)
    pixels, depth = project(points, cameras[i : i + 1])
    pixels, depth = pixels.reshape(height, width, 2).numpy(), depth.reshape(height, width).numpy()
    x, y = pixels[..., 0], pixels[..., 1]
    source, target = clip.frames[i].numpy().astype(np.float32), clip.frames[j].numpy()
    warped = cv2.remap(source, x, y, cv2.INTER_LINEAR)
    static = np.where(clip.moving[i].numpy(), np.nan, clip.depth[i].numpy())
    depth_i = cv2.remap(static, x, y, cv2.INTER_NEAREST)
    visible = (np.abs(depth_i - depth) < 0.03 * depth) & ~clip.moving[j].numpy()
    visible &= (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    assert visible.mean() > 0.25

    def psnr(frame):
        return -10 * np.log10((((frame - target) / 255)[visible] ** 2).mean())

    return psnr(warped), psnr(source)
