"""Encode frames to normalised latents and decode them. No other module calls the VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from diffusers import AutoencoderKLWan, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from jaxtyping import Float
from safetensors import SafetensorError
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_model.io import read_json
from mirage_model.model.taehv import TinyDecoder

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
"""Arguments of `AutoencoderKLWan` for Wan2.2-TI2V-5B, without the latent statistics of its
weights."""
# fmt: off
WAN22_STATISTICS = {
    'latents_mean': [
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542,
        0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109,
        0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899,
        -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
        0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ],
    'latents_std': [
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344,
        0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804,
        0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999,
        0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
        0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ],
}
# fmt: on
"""Statistics of the published weights, from Wan's own code."""


class BlockAutoencoder(ModelMixin, ConfigMixin):
    """A linear code of square pixel blocks, frame by frame, with the interface of
    `AutoencoderKLWan`."""

    @register_to_config
    def __init__(
        self,
        z_dim: int = 16,
        scale_factor_spatial: int = 4,
        scale_factor_temporal: int = 1,
        *,
        latents_mean: list[float],
        latents_std: list[float],
    ) -> None:
        super().__init__()
        if scale_factor_temporal != 1:
            raise ValueError(
                f'scale_factor_temporal: {scale_factor_temporal} is not allowed, '
                'blocks are coded frame by frame (1)'
            )
        stride = scale_factor_spatial
        self.encoder = nn.Conv2d(3, z_dim, stride, stride=stride)
        self.decoder = nn.ConvTranspose2d(z_dim, 3, stride, stride=stride)

    def encode(self, x: Float[Tensor, 'b 3 n H W']) -> AutoencoderKLOutput:
        """Encode clips in -1..1; the posterior has no spread."""
        z = _each_frame(self.encoder, x)
        no_spread = torch.full_like(z, -torch.inf)
        return AutoencoderKLOutput(
            latent_dist=DiagonalGaussianDistribution(torch.cat([z, no_spread], dim=1))
        )

    def decode(self, z: Float[Tensor, 'b c k h w']) -> DecoderOutput:
        """Decode clips to -1..1."""
        return DecoderOutput(sample=_each_frame(self.decoder, z))


def _each_frame(layer: nn.Module, x: Float[Tensor, 'b c n h w']) -> Tensor:
    return layer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)


Autoencoder: TypeAlias = AutoencoderKLWan | BlockAutoencoder
AUTOENCODERS = {
    'AutoencoderKLWan': AutoencoderKLWan,
    'BlockAutoencoder': BlockAutoencoder,
}
"""Classes that the config.json of a VAE folder may name."""


class _SingleFrameConv3d(WanCausalConv3d):
    """A causal convolution that is 2D for a single frame.

    Before a single frame there is only zero padding, so a 3D convolution equals the 2D convolution
    with the last temporal tap.
    """

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        if cache_x is not None or x.shape[2] != 1 or self._padding[4] != self.kernel_size[0] - 1:
            return super().forward(x, cache_x)
        left, right, top, bottom = self._padding[:4]
        assert left == right and top == bottom and self.stride == (1, 1, 1)
        weight = self.weight[:, :, -1]
        return F.conv2d(x.squeeze(2), weight, self.bias, padding=(top, left)).unsqueeze(2)


def use_single_frame_convolutions(vae: Autoencoder) -> Autoencoder:
    """Make single frames cheaper in place; weights stay, results are equal up to rounding."""
    for module in vae.modules():
        if type(module) is WanCausalConv3d:
            module.__class__ = _SingleFrameConv3d
    return vae


def load_pretrained(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load a diffusers model of class ``cls`` from a folder with safetensors.

    Raises:
        ValueError: A file is missing or damaged, or the weights do not fit config.json. Diffusers
            alone would fill missing weights with random numbers.
    """
    if not (folder / 'config.json').is_file():
        raise ValueError(f'{folder / "config.json"}: the file is missing')
    if not any(folder.glob('*.safetensors')):
        raise ValueError(f'{folder}: no weights, a .safetensors file is needed')
    try:
        model, info = cls.from_pretrained(
            folder,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f'{folder}: cannot be loaded, {error}') from error
    wrong = {
        key: info[key]
        for key in ('missing_keys', 'mismatched_keys', 'unexpected_keys')
        if info[key]
    }
    if wrong:
        raise ValueError(f'{folder}: weights do not fit config.json, {wrong}')
    return model


def load_autoencoder(folder: Path, dtype: torch.dtype) -> Autoencoder:
    """Load the class of `AUTOENCODERS` that config.json names; raise ValueError as
    `load_pretrained`."""
    path = folder / 'config.json'
    name = read_json(path).get('_class_name')
    if name not in AUTOENCODERS:
        raise ValueError(
            f'{path}: autoencoder {name!r} is unknown, allowed are {sorted(AUTOENCODERS)}'
        )
    return load_pretrained(AUTOENCODERS[name], folder, dtype)


class Codec:
    """A frozen VAE with normalised latents: zero mean and unit deviation per channel."""

    def __init__(
        self, vae: Autoencoder, *, decoder: TinyDecoder | None = None, tiling: bool = False
    ) -> None:
        """Take a VAE, and a decoder in place of its own.

        Args:
            tiling: Encode and decode large frames in overlapping tiles, which saves memory.

        Raises:
            ValueError: The decoder does not fit the VAE, or the VAE knows no tiles.
        """
        self.vae = use_single_frame_convolutions(vae).eval().requires_grad_(False)
        self.channels: int = vae.config.z_dim
        self.spatial_stride: int = vae.config.scale_factor_spatial
        self.temporal_stride: int = vae.config.scale_factor_temporal
        shape = (1, self.channels, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape)
        # Wan's code multiplies by the inverse: other roundings would not be bit for bit
        self._inverse_std = 1 / torch.tensor(vae.config.latents_std).view(shape)
        strides = (self.temporal_stride, self.spatial_stride)
        if decoder and (decoder.config.channels, decoder.strides) != (self.channels, strides):
            raise ValueError(
                f'decoder: {decoder.config.channels} channels and strides {decoder.strides} do '
                f'not fit the VAE, {self.channels} and {strides} are needed'
            )
        self._decoder = decoder
        self._white: dict[tuple[int, int, int], Tensor] = {}
        if tiling and not isinstance(vae, AutoencoderKLWan):
            raise ValueError(f'tiling: {type(vae).__name__} knows no tiles, leave it out')
        if tiling:
            vae.enable_tiling()

    @classmethod
    def from_folder(
        cls, folder: Path, *, device: str = 'cpu', dtype: torch.dtype = torch.float32
    ) -> Codec:
        """Load a VAE folder in diffusers' layout; raise ValueError as `load_pretrained` does."""
        return cls(load_autoencoder(folder, dtype).to(device))

    @property
    def device(self) -> torch.device:
        return self.vae.device

    def to(self, device: torch.device | str) -> None:
        self.vae.to(device)
        if self._decoder is not None:
            self._decoder.to(device)
        self._white.clear()

    @classmethod
    def untrained(cls, arguments: dict, *, device: str = 'cpu') -> Codec:
        """Return a codec of random weights, for timing; on device 'meta' it has sizes only."""
        with torch.device(device):
            vae = AutoencoderKLWan(**arguments)
        return cls(vae)

    def latent_frames(self, frames: int) -> int:
        """Return the number of latent frames of ``frames`` frames: (n - 1) / stride + 1.

        Raises:
            ValueError: ``frames`` is not a multiple of the temporal stride plus 1.
        """
        if frames < 1 or (frames - 1) % self.temporal_stride:
            raise ValueError(
                f'frames: {frames} frames do not fit the codec, '
                f'the count must be {self.temporal_stride}k + 1'
            )
        return (frames - 1) // self.temporal_stride + 1

    @torch.no_grad()
    def encode(self, frames: Float[Tensor, 'b n 3 H W']) -> Float[Tensor, 'b c k h w']:
        """Encode clips in 0..1 to the mode of the posterior.

        Raises:
            ValueError: The frame count does not fit (see `latent_frames`), or the height or width
                is not a multiple of the spatial stride.
        """
        self.latent_frames(frames.shape[1])
        height, width = frames.shape[-2:]
        if height % self.spatial_stride or width % self.spatial_stride:
            raise ValueError(
                f'frames: {height}x{width} does not fit the codec, '
                f'height and width must be multiples of {self.spatial_stride}'
            )
        x = (frames.movedim(2, 1) * 2 - 1).to(self.vae.dtype)
        latents = self.vae.encode(x).latent_dist.mode().float()
        return (latents - self._mean.to(latents.device)) * self._inverse_std.to(latents.device)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, 'b c k h w']) -> Float[Tensor, 'b n 3 H W']:
        """Decode clips; values may leave 0..1."""
        if self._decoder is not None:
            dtype = next(self._decoder.parameters()).dtype
            return self._decoder(latents.to(dtype)).float()
        z = latents.float() / self._inverse_std.to(latents.device)
        z = z + self._mean.to(latents.device)
        frames = self.vae.decode(z.to(self.vae.dtype)).sample.float()
        return (frames.movedim(1, 2) + 1) / 2

    def encode_white(self, latent_frames: int, h: int, w: int) -> Float[Tensor, '1 c k h w']:
        """Return the latents of a white clip, which are encoded once for each shape."""
        shape = (latent_frames, h, w)
        if shape not in self._white:
            n, stride = (latent_frames - 1) * self.temporal_stride + 1, self.spatial_stride
            white = torch.ones(1, n, 3, h * stride, w * stride, device=self.device)
            self._white[shape] = self.encode(white)
        return self._white[shape]

    def encode_images(self, frames: Float[Tensor, 'n 3 H W']) -> Float[Tensor, 'n c h w']:
        """Encode each frame on its own, so that its latents belong to one camera."""
        return self.encode(frames[:, None])[:, :, 0]

    def decode_images(self, latents: Float[Tensor, 'n c h w']) -> Float[Tensor, 'n 3 H W']:
        """Decode single-frame latents; values may leave 0..1."""
        return self.decode(latents[:, :, None])[:, 0]
