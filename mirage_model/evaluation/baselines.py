"""Baselines that need no model: the frames of a first chunk from its seed frame alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Bool, Float, UInt8
import numpy as np
from scipy.ndimage import distance_transform_edt
import torch
from torch import Tensor

from mirage_model.camera import Cameras, concatenate, project, unproject
from mirage_model.engine.inputs import fit_observation
from mirage_model.interface import Observation
from mirage_model.model.resampler import inpainted

NEAR = 0.05
"""Smallest depth of a warped pixel [m]."""


def repeat_seed(seed: Float[Tensor, '3 H W'], count: int) -> Float[Tensor, 'n 3 H W']:
    """Return the seed frame ``count`` times."""
    return seed.expand(count, *seed.shape)


def flat_colour(seed: Float[Tensor, '3 H W'], count: int) -> Float[Tensor, 'n 3 H W']:
    """Return frames of the seed frame's mean colour."""
    return seed.mean(dim=(1, 2), keepdim=True).expand(count, *seed.shape)


def warp_and_inpaint(
    seed: Float[Tensor, '3 H W'],
    depth: Float[Tensor, 'H W'],
    seed_camera: Cameras,
    cameras: Cameras,
) -> Float[Tensor, 'n 3 H W']:
    """Warp the seed frame into cameras by its depth and inpaint the rest.

    Holes in the depth take the nearest known depth. Each pixel covers the 2x2 pixels around its
    projection, the nearest wins, and holes are inpainted (Telea, 2004).

    Args:
        seed: RGB in 0..1.
        depth: Metres; not finite where unknown.
        seed_camera: Batch of one camera.
        cameras: Cameras to warp into.
    """
    known = torch.isfinite(depth).numpy()
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    closed = torch.from_numpy(depth.numpy()[tuple(nearest)])
    points = unproject(closed[None], seed_camera).flatten(0, 2)
    colours = seed.flatten(1).T
    images, covers = [], []
    for index in range(len(cameras)):
        pixels, distance = project(points[None], cameras[index : index + 1])
        image, covered = _splat(pixels[0], distance[0], colours, cameras.height, cameras.width)
        images.append(image.movedim(-1, 0))
        covers.append(covered)
    return inpainted(torch.stack(images), torch.stack(covers))


def warp_observation(
    seen: Sequence[Observation], height: int, width: int
) -> UInt8[np.ndarray, 'n {height} {width} 3'] | None:
    """Warp the first observation to the cameras of the n others, by `warp_and_inpaint`.

    Returns:
        Frames at a model's size, or None where the first observation has no depth.
    """
    first, *others = seen
    start = fit_observation(first, height, width)
    if start.depth is None:
        return None
    cameras = [fit_observation(replace(view, depth=None), height, width).camera for view in others]
    warped = warp_and_inpaint(start.frame[0], start.depth[0], start.camera, concatenate(cameras))
    return (warped * 255).round().byte().movedim(1, -1).numpy()


def _splat(
    pixels: Float[Tensor, 'm 2'],
    distance: Float[Tensor, 'm'],
    colours: Float[Tensor, 'm 3'],
    height: int,
    width: int,
) -> tuple[Float[Tensor, 'H W 3'], Bool[Tensor, 'H W']]:
    """Return the nearest point's colour at each pixel and whether a point covers it."""
    image = np.zeros((height * width, 3), dtype=np.float32)
    covered = np.zeros(height * width, dtype=bool)
    corner = pixels.floor()
    targets, ranks, sources = [], [], []
    for offset in ((0, 0), (1, 0), (0, 1), (1, 1)):
        at = corner + torch.tensor(offset)
        inside = (distance > NEAR) & (at >= 0).all(dim=1)
        inside &= (at[:, 0] < width) & (at[:, 1] < height)
        source = inside.nonzero()[:, 0]
        column, row = at[source].long().unbind(dim=1)
        # on one surface the pixel whose centre is nearest wins
        away = (at - pixels)[source].abs().sum(dim=1)
        targets.append(row * width + column)
        ranks.append(distance[source] * (1 + 0.002 * away))
        sources.append(source)
    target, origin = torch.cat(targets).numpy(), torch.cat(sources).numpy()
    # the last write wins: farthest first
    order = np.argsort(-torch.cat(ranks).numpy(), kind='stable')
    image[target[order]] = colours.numpy()[origin[order]]
    covered[target] = True
    shape = (height, width)
    return torch.from_numpy(image).view(*shape, 3), torch.from_numpy(covered).view(shape)
