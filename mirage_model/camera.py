"""Cameras, rigid transforms and all pinhole arithmetic. The conventions of the library live here.

- A camera looks along +z of its optical frame; x points right and y points down (REP 103).
- Lengths are metres, times are seconds, depth is measured along the optical axis.
- ``K`` is in pixels and the centre of the top-left pixel is (0, 0).
- ``a_from_b`` takes coordinates in ``b`` to coordinates in ``a``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Bool, Float
import torch
from torch import Tensor

from mirage_model.messages.poses import MAX_DISTANCE


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """A batch of pinhole cameras, each at a moment in time.

    The constructor checks nothing; `check_cameras` is for input from outside.
    """

    K: Float[Tensor, '*batch 3 3']
    """Intrinsics in pixels, float32."""

    world_from_camera: Float[Tensor, '*batch 4 4']
    """Camera to world, float32, metres."""

    times: Float[Tensor, '*batch']
    """Seconds, float64, so that stamps since the epoch keep their microseconds."""

    height: int
    width: int

    def __len__(self) -> int:
        return self.K.shape[0]

    def __getitem__(self, index: Any) -> Cameras:
        return replace(
            self,
            K=self.K[index],
            world_from_camera=self.world_from_camera[index],
            times=self.times[index],
        )

    def to(self, device: torch.device | str) -> Cameras:
        return replace(
            self,
            K=self.K.to(device),
            world_from_camera=self.world_from_camera.to(device),
            times=self.times.to(device),
        )


def concatenate(parts: list[Cameras]) -> Cameras:
    """Return cameras of one image size, joined along the first batch axis.

    Raises:
        ValueError: If the image sizes differ.
    """
    sizes = {(part.height, part.width) for part in parts}
    if len(sizes) != 1:
        raise ValueError(f'cameras: their image sizes are {sorted(sizes)}, must be equal')
    return replace(
        parts[0],
        K=torch.cat([part.K for part in parts]),
        world_from_camera=torch.cat([part.world_from_camera for part in parts]),
        times=torch.cat([part.times for part in parts]),
    )


def check_cameras(cameras: Cameras) -> Cameras:
    """Return ``cameras`` unchanged; raise ValueError that names the first invalid camera."""
    if cameras.height < 1 or cameras.width < 1:
        raise ValueError(f'image size: {cameras.height}x{cameras.width}, must be positive')
    if cameras.K.numel() == 0:
        raise ValueError('cameras: there are none, at least one is needed')
    K = cameras.K.reshape(-1, 3, 3).double()
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], dim=-1)
    wrong_K = ~torch.isfinite(K).flatten(1).all(dim=1) | (focal <= 0).any(dim=1)
    wrong_K |= (K[:, 2] != K.new_tensor([0.0, 0.0, 1.0])).any(dim=1)
    wrong_K |= (K[:, 1, 0] != 0) | (K[:, 0, 1] != 0)
    _raise_first(wrong_K, K, 'K is not a pinhole matrix [fx 0 cx; 0 fy cy; 0 0 1] with fx, fy > 0')
    check_rigid(cameras.world_from_camera)
    position = cameras.world_from_camera.reshape(-1, 4, 4)[:, :3, 3]
    _raise_first(
        position.abs().amax(dim=1) > MAX_DISTANCE,
        position,
        f'position is further than {MAX_DISTANCE:.0f} m from the origin, where float32 loses '
        'millimetres; use a frame with a closer origin',
    )
    _raise_first(
        ~torch.isfinite(cameras.times.reshape(-1)), cameras.times.reshape(-1), 'time is not finite'
    )
    return cameras


def check_rigid(transforms: Float[Tensor, '*batch 4 4'], *, tolerance: float = 1e-3) -> None:
    """Raise ValueError, naming the first bad index, unless all transforms are rigid."""
    if transforms.shape[-2:] != (4, 4):
        raise ValueError(f'transforms: shape {tuple(transforms.shape)}, must be (..., 4, 4)')
    flat = transforms.reshape(-1, 4, 4).double()
    _raise_first(
        ~torch.isfinite(flat).flatten(1).all(dim=1), flat, 'transform has NaN or infinite entries'
    )
    rotation = flat[:, :3, :3]
    gram_error = (
        rotation.mT @ rotation - torch.eye(3, dtype=flat.dtype, device=flat.device)
    ).abs()
    wrong = (gram_error.amax(dim=(1, 2)) > tolerance) | (torch.linalg.det(rotation) < 0)
    wrong |= (flat[:, 3] - flat.new_tensor([0.0, 0.0, 0.0, 1.0])).abs().amax(dim=1) > tolerance
    _raise_first(wrong, flat, 'transform is not rigid')


def _raise_first(wrong: Bool[Tensor, 'n'], values: Tensor, message: str) -> None:
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise ValueError(f'camera {index}: {message}: {values[index].tolist()}')


def invert(transforms: Float[Tensor, '*batch 4 4']) -> Float[Tensor, '*batch 4 4']:
    """Return the inverse of rigid transforms."""
    rotation = transforms[..., :3, :3].mT
    translation = -rotation @ transforms[..., :3, 3:]
    return torch.cat([torch.cat([rotation, translation], dim=-1), transforms[..., 3:, :]], dim=-2)


def resized(cameras: Cameras, height: int, width: int) -> Cameras:
    """Return the cameras of rescaled images: a coordinate c becomes (c + 0.5) s - 0.5."""
    scale = cameras.K.new_tensor([width / cameras.width, height / cameras.height, 1.0])
    shift = cameras.K.new_tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    K = (cameras.K + shift) * scale[:, None] - shift
    return replace(cameras, K=K, height=height, width=width)


def project(
    points_in_world: Float[Tensor, '*batch n 3'], cameras: Cameras
) -> tuple[Float[Tensor, '*batch n 2'], Float[Tensor, '*batch n']]:
    """Return pixels (x, y) and depths of world points. Pixels are valid if depth is positive."""
    camera_from_world = invert(cameras.world_from_camera)
    points = (
        points_in_world @ camera_from_world[..., :3, :3].mT + camera_from_world[..., None, :3, 3]
    )
    depth = points[..., 2]
    focal = torch.stack([cameras.K[..., 0, 0], cameras.K[..., 1, 1]], dim=-1)
    pixels = points[..., :2] / depth[..., None] * focal[..., None, :] + cameras.K[..., None, :2, 2]
    return pixels, depth


def directions(cameras: Cameras) -> Float[Tensor, '*batch height width 3']:
    """Return rays through the pixel centres in the camera frame, scaled so that z is 1."""
    y = torch.arange(cameras.height, dtype=cameras.K.dtype, device=cameras.K.device)
    x = torch.arange(cameras.width, dtype=cameras.K.dtype, device=cameras.K.device)
    x = (x - cameras.K[..., 0, 2, None]) / cameras.K[..., 0, 0, None]
    y = (y - cameras.K[..., 1, 2, None]) / cameras.K[..., 1, 1, None]
    shape = (*x.shape[:-1], cameras.height, cameras.width)
    x, y = x[..., None, :].expand(shape), y[..., :, None].expand(shape)
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def unproject(
    depth: Float[Tensor, '*batch height width'], cameras: Cameras
) -> Float[Tensor, '*batch height width 3']:
    """Return the world points at the pixel centres at the given depth."""
    points = directions(cameras) * depth[..., None]
    rotation = cameras.world_from_camera[..., None, :3, :3]
    return points @ rotation.mT + cameras.world_from_camera[..., None, None, :3, 3]


def rays(cameras: Cameras, reference: Cameras) -> Float[Tensor, '*batch 6 height width']:
    """Return the ray of each pixel in the ``reference`` camera: unit direction, origin in metres.

    ``reference`` has the batch shape of ``cameras`` without its last axis.
    """
    reference_from_camera = (
        invert(reference.world_from_camera)[..., None, :, :] @ cameras.world_from_camera
    )
    direction = torch.nn.functional.normalize(directions(cameras), dim=-1)
    direction = direction @ reference_from_camera[..., None, :3, :3].mT
    origin = reference_from_camera[..., None, None, :3, 3].expand_as(direction)
    return torch.cat([direction, origin], dim=-1).movedim(-1, -3)
