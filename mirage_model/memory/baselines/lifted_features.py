"""Lifted features: latents upsampled to pixels, with a latent point for each pixel."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
import torch.nn.functional as F

from mirage_model.camera import Cameras
from mirage_model.memory import Encoder, Pixels, Readout
from mirage_model.memory.baselines.pixels import check_pixels, off_depth_edges
from mirage_model.memory.latent import LatentMemory, MemoryConfig


class LiftedFeatures:
    """`LatentMemory` written at the resolution of frames and read on the latent grid."""

    takes_latents = True

    def __init__(self, config: MemoryConfig, encoder: Encoder) -> None:
        self._encoder = encoder
        self._memory = LatentMemory(config)

    def __len__(self) -> int:
        return len(self._memory)

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    @property
    def index_nbytes(self) -> int:
        return self._memory.index_nbytes

    def fork(self) -> LiftedFeatures:
        branch = LiftedFeatures(self._memory.config, self._encoder)
        branch._memory = self._memory.fork()
        return branch

    def write(
        self,
        latents: Float[Tensor, 'n c h w'] | None,
        depth: Float[Tensor, 'n h w'],
        cameras: Cameras,
        *,
        valid: Bool[Tensor, 'n h w'],
        observed: bool,
        confidence: Float[Tensor, 'n h w'] | None = None,
        pixels: Pixels | None = None,
    ) -> int:
        """Write pixels off depth edges with bilinearly upsampled latents, camera by camera."""
        stride = self._encoder.spatial_stride
        pixels, pixel_cameras = check_pixels(pixels, cameras, stride)
        if latents is None or latents.shape[-2:] != depth.shape[-2:]:
            shape = None if latents is None else tuple(latents.shape)
            raise ValueError(
                f'latents: shape {shape}, expected the grid of depth, {tuple(depth.shape)}'
            )
        writable = off_depth_edges(pixels.depth)
        added = 0
        for k in range(len(cameras)):
            one = slice(k, k + 1)
            added += self._memory.write(
                F.interpolate(latents[one].cpu(), scale_factor=stride, mode='bilinear'),
                pixels.depth[one],
                pixel_cameras[one],
                valid=writable[one],
                observed=observed,
                confidence=None
                if confidence is None
                else F.interpolate(confidence[one, None].cpu(), scale_factor=stride)[:, 0],
            )
        return added

    def readout(self, cameras: Cameras, *, latents: bool = True) -> Readout:
        return self._memory.readout(cameras, latents=latents)
