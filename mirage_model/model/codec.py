"""Frames to normalised latents and back. The only user of the VAE."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from jaxtyping import Float
from safetensors import SafetensorError
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WAN22_VAE = {
    'base_dim': 160,
    'decoder_base_dim': 256,
    'z_dim': 48,
    'dim_mult': [1, 2, 4, 4],
    'num_res_blocks': 2,
    'attn_scales': [],
    'temperal_downsample': [False, True, True],
    'is_residual': True,
    'in_channels': 12,
    'out_channels': 12,
    'patch_size': 2,
    'scale_factor_spatial': 16,
    'scale_factor_temporal': 4,
    'latents_mean': [0.0] * 48,
    'latents_std': [1.0] * 48,
}
"""Arguments of `AutoencoderKLWan`: the size of Wan2.2-TI2V-5B, without the statistics of its weights."""


class _StillAwareConv3d(WanCausalConv3d):
    """A causal convolution that spends no work on the zero padding before a single frame.

    There a 3D convolution equals the 2D one with the last temporal tap.
    """

    def forward(self, x, cache_x=None):
        if cache_x is not None or x.shape[2] != 1 or self._padding[4] != self.kernel_size[0] - 1:
            return super().forward(x, cache_x)
        left, right, top, bottom = self._padding[:4]
        assert left == right and top == bottom and self.stride == (1, 1, 1)
        weight = self.weight[:, :, -1]
        return F.conv2d(x.squeeze(2), weight, self.bias, padding=(top, left)).unsqueeze(2)


def use_still_aware_convolutions(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Make single frames cheaper, with the same weights and the same result up to rounding."""
    for module in vae.modules():
        if type(module) is WanCausalConv3d:
            module.__class__ = _StillAwareConv3d
    return vae


def load_pretrained(cls, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A model of diffusers from a folder, safetensors only.

    Raises ValueError naming the folder for what diffusers would fill with random weights.
    """
    if not (folder / 'config.json').is_file():
        raise ValueError(f'{folder / "config.json"} is missing')
    if not any(folder.glob('*.safetensors')):
        raise ValueError(f'{folder} has no safetensors weights')
    try:
        model, info = cls.from_pretrained(
            folder,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f'{folder} cannot be loaded: {error}') from error
    wrong = {
        key: info[key]
        for key in ('missing_keys', 'mismatched_keys', 'unexpected_keys')
        if info[key]
    }
    if wrong:
        raise ValueError(f'{folder} does not fit its config.json: {wrong}')
    return model


class Codec:
    """A frozen VAE behind normalised latents: zero mean and unit deviation per channel.

    Frames are in 0..1. ``encode`` is deterministic: the mode of the posterior.
    """

    def __init__(self, vae: AutoencoderKLWan):
        self.vae = use_still_aware_convolutions(vae).eval().requires_grad_(False)
        self.channels: int = vae.config.z_dim
        self.spatial_stride: int = vae.config.scale_factor_spatial
        self.temporal_stride: int = vae.config.scale_factor_temporal
        shape = (1, self.channels, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape)
        self._std = torch.tensor(vae.config.latents_std).view(shape)

    @classmethod
    def from_folder(cls, folder: Path, *, device: str = 'cpu', dtype=torch.float32) -> Codec:
        """Load a VAE folder in diffusers' layout. Raises ValueError as `load_pretrained` does."""
        vae = load_pretrained(AutoencoderKLWan, folder, dtype)
        return cls(vae.to(device))

    @property
    def device(self) -> torch.device:
        return self.vae.device

    def to(self, device: torch.device | str) -> None:
        self.vae.to(device)

    @classmethod
    def untrained(cls, arguments: dict, *, device: str = 'cpu') -> Codec:
        """A codec of random weights, to see how long it takes; on 'meta' of none, for its sizes."""
        with torch.device(device):
            vae = AutoencoderKLWan(**arguments)
        return cls(vae)

    def latent_frames(self, frames: int) -> int:
        """(n - 1) / 4 + 1 at a temporal stride of 4. Raises ValueError for a count that does not fit."""
        if frames < 1 or (frames - 1) % self.temporal_stride:
            raise ValueError(
                f'{frames} frames do not fit the codec: the count must be {self.temporal_stride}k + 1'
            )
        return (frames - 1) // self.temporal_stride + 1

    @torch.no_grad()
    def encode(self, frames: Float[Tensor, 'b n 3 H W']) -> Float[Tensor, 'b c k h w']:
        """Raises ValueError if the frame count is not 4k + 1 or the size no multiple of the stride."""
        self.latent_frames(frames.shape[1])
        height, width = frames.shape[-2:]
        if height % self.spatial_stride or width % self.spatial_stride:
            raise ValueError(f'{height}x{width} frames are no multiple of {self.spatial_stride}')
        x = (frames.movedim(2, 1) * 2 - 1).to(self.vae.dtype)
        latents = self.vae.encode(x).latent_dist.mode().float()
        return (latents - self._mean.to(latents.device)) / self._std.to(latents.device)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, 'b c k h w']) -> Float[Tensor, 'b n 3 H W']:
        z = latents.float() * self._std.to(latents.device) + self._mean.to(latents.device)
        frames = self.vae.decode(z.to(self.vae.dtype)).sample.float()
        return (frames.movedim(1, 2) + 1) / 2

    def encode_images(self, frames: Float[Tensor, 'n 3 H W']) -> Float[Tensor, 'n c h w']:
        """Every frame encoded alone, so that its latents belong to one camera."""
        return self.encode(frames[:, None])[:, :, 0]

    def decode_images(self, latents: Float[Tensor, 'n c h w']) -> Float[Tensor, 'n 3 H W']:
        return self.decode(latents[:, :, None])[:, 0]
