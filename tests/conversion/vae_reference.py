"""A plain version of the VAE of Wan2.2, on tensors by their published names.

It goes through a clip a latent frame at a time, as the published code does; a causal convolution
keeps the last frames of its input. Sums are in the published order, so that results are equal bit
for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


class Vae:
    """Encoder and decoder of one clip each; tensors are (1, c, frames, h, w)."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state
        self._past: dict[str, Tensor] = {}

    def encode(self, frames: Tensor) -> Tensor:
        """Return the mean of the posterior of frames in -1..1."""
        self._past.clear()
        pixels = frames.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))
        # each colour becomes four channels, columns before rows
        pixels = pixels.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)
        starts = [0, *range(1, pixels.shape[2], 4)]
        parts = [pixels[:, :, at : at + (4 if at else 1)] for at in starts]
        encoded = torch.cat([self._encode_part(part) for part in parts], dim=2)
        return self._causal('conv1', encoded).chunk(2, dim=1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Return frames in -1..1 of latents that are not normalised."""
        self._past.clear()
        parts = self._causal('conv2', latents).split(1, dim=2)
        pixels = torch.cat([self._decode_part(x, i == 0) for i, x in enumerate(parts)], dim=2)
        pixels = pixels.unflatten(1, (-1, 2, 2)).permute(0, 1, 4, 5, 3, 6, 2)
        return pixels.flatten(5, 6).flatten(3, 4).clamp(-1, 1)

    def _encode_part(self, x: Tensor) -> Tensor:
        x = self._causal('encoder.conv1', x)
        for stage in range(4):
            name, start = f'encoder.downsamples.{stage}.downsamples', x
            x = self._residual(f'{name}.1', self._residual(f'{name}.0', x))
            if stage < 3:
                x = self._halve(f'{name}.2', x)
            x = x + _averaged(start, x, halves_time=stage in (1, 2))
        x = self._middle('encoder', x)
        return self._causal('encoder.head.2', F.silu(self._norm('encoder.head.0', x)))

    def _decode_part(self, x: Tensor, first: bool) -> Tensor:
        x = self._middle('decoder', self._causal('decoder.conv1', x))
        for stage in range(4):
            name, start = f'decoder.upsamples.{stage}.upsamples', x
            for layer in range(3):
                x = self._residual(f'{name}.{layer}', x)
            if stage < 3:
                x = self._double(f'{name}.3', x, first)
                x = x + _repeated(start, x, doubles_time=stage < 2)
        return self._causal('decoder.head.2', F.silu(self._norm('decoder.head.0', x)))

    def _causal(self, name: str, x: Tensor) -> Tensor:
        """Convolve with the frames before; before the first one there are zeros."""
        weight = self.state[f'{name}.weight']
        reach, side = weight.shape[2] - 1, weight.shape[3] // 2
        past = self._past.get(name, x[:, :, :0])
        x = torch.cat([past, x], dim=2)
        self._past[name] = x[:, :, max(0, x.shape[2] - reach) :]
        x = F.pad(x, (side, side, side, side, reach - past.shape[2], 0))
        return F.conv3d(x, weight, self.state[f'{name}.bias'])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.state[f'{name}.gamma']

    def _residual(self, name: str, x: Tensor) -> Tensor:
        has_shortcut = f'{name}.shortcut.weight' in self.state
        shortcut = self._causal(f'{name}.shortcut', x) if has_shortcut else x
        x = self._causal(f'{name}.residual.2', F.silu(self._norm(f'{name}.residual.0', x)))
        x = self._causal(f'{name}.residual.6', F.silu(self._norm(f'{name}.residual.3', x)))
        return x + shortcut

    def _middle(self, part: str, x: Tensor) -> Tensor:
        x = self._residual(f'{part}.middle.0', x)
        x = self._attention(f'{part}.middle.1', x)
        return self._residual(f'{part}.middle.2', x)

    def _attention(self, name: str, x: Tensor) -> Tensor:
        """Attend to all places of the same frame, with a single head."""
        images = x[0].transpose(0, 1)
        qkv = self._conv2d(f'{name}.to_qkv', self._norm(f'{name}.norm', images))
        q, k, v = qkv.flatten(2).transpose(1, 2).contiguous()[:, None].chunk(3, dim=-1)
        images = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        images = images.reshape(x.shape[2], x.shape[1], *x.shape[3:])
        images = self._conv2d(f'{name}.proj', images)
        return images.transpose(0, 1)[None] + x

    def _conv2d(self, name: str, images: Tensor, **options: int) -> Tensor:
        state = self.state
        return F.conv2d(images, state[f'{name}.weight'], state[f'{name}.bias'], **options)

    def _halve(self, name: str, x: Tensor) -> Tensor:
        """Halve height and width, and the number of frames but for the first."""
        images = F.pad(x[0].transpose(0, 1), (0, 1, 0, 1))
        x = self._conv2d(f'{name}.resample.1', images, stride=2).transpose(0, 1)[None]
        name = f'{name}.time_conv'
        if f'{name}.weight' not in self.state:
            return x
        past, self._past[name] = self._past.get(name), x[:, :, -1:]
        if past is None:
            return x
        weight, bias = self.state[f'{name}.weight'], self.state[f'{name}.bias']
        return F.conv3d(torch.cat([past, x], dim=2), weight, bias, stride=(2, 1, 1))

    def _double(self, name: str, x: Tensor, first: bool) -> Tensor:
        """Double height and width, and the number of frames but for the first."""
        if not first and f'{name}.time_conv.weight' in self.state:
            both = self._causal(f'{name}.time_conv', x).chunk(2, dim=1)
            x = torch.stack(both, dim=3).flatten(2, 3)
        images = x[0].transpose(0, 1).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return self._conv2d(f'{name}.resample.1', images, padding=1).transpose(0, 1)[None]


def _averaged(x: Tensor, smaller: Tensor, *, halves_time: bool) -> Tensor:
    """Return means of neighbours, and of channels, in the shape of a smaller tensor."""
    steps, size = 2 if halves_time else 1, x.shape[3] // smaller.shape[3]
    x = F.pad(x, (0, 0, 0, 0, x.shape[2] % steps, 0))  # the first frame goes with a zero
    pieces = [
        x[:, :, t::steps, r::size, c::size]
        for t in range(steps)
        for r in range(size)
        for c in range(size)
    ]
    channels = torch.stack(pieces, dim=2).flatten(1, 2)
    return channels.unflatten(1, (smaller.shape[1], -1)).mean(dim=2)


def _repeated(x: Tensor, larger: Tensor, *, doubles_time: bool) -> Tensor:
    """Return channels as neighbours, repeated, in the shape of a larger tensor."""
    steps = 2 if doubles_time else 1
    repeats = larger.shape[1] * steps * 4 // x.shape[1]
    x = x.repeat_interleave(repeats, dim=1).unflatten(1, (-1, steps, 2, 2))
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return x[:, :, x.shape[2] - larger.shape[2] :]
