"""No memory: the baseline that holds nothing."""

from __future__ import annotations

from jaxtyping import Bool, Float
import torch
from torch import Tensor

from mirage_model.camera import Cameras
from mirage_model.memory import Pixels, Readout


class NoMemory:
    """`Memory` that ignores writes."""

    takes_latents = False
    nbytes = index_nbytes = 0

    def __init__(self, channels: int) -> None:
        self._channels = channels

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
        return 0

    def readout(self, cameras: Cameras, *, latents: bool = True) -> Readout:
        shape = (len(cameras), cameras.height, cameras.width)
        device = cameras.K.device
        zeros = torch.zeros(shape, device=device)
        return Readout(
            latents=torch.zeros(
                shape[0], self._channels if latents else 0, *shape[1:], device=device
            ),
            visible=zeros.bool(),
            observed=zeros.bool(),
            depth=zeros,
            age=zeros,
            offset=torch.zeros(shape[0], 2, *shape[1:], device=device),
            depth_ratio=zeros,
        )

    def fork(self) -> NoMemory:
        return NoMemory(self._channels)

    def __len__(self) -> int:
        return 0
