"""A small decoder for a video codec's latents, in the architecture of TAEHV.

It is several times faster than the VAE's decoder and less sharp. Layers have the positions of the
published files, https://github.com/madebyollin/taehv, so that their weights fit by name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
import json
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_model.io import read_json


@dataclass(frozen=True, kw_only=True)
class TinyDecoderConfig:
    """Sizes of a decoder; the defaults are those of `taew2_2`, for Wan2.2-TI2V-5B."""

    channels: int = 48
    """Latent channels."""
    widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    """Channels before each doubling of height and width, and after the last."""
    doubles_time: tuple[bool, bool, bool] = (False, True, True)
    """Whether a stage doubles the frames too."""
    patch: int = 2
    """Side of the square of pixels that the last layer writes at once [px]."""


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class _MemoryBlock(nn.Module):
    """A residual block that sees the frame before; before the first frame there are zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (2 * width, width, width):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])

    def forward(self, x: Float[Tensor, 'b n c h w']) -> Float[Tensor, 'b n c h w']:
        previous = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
        change = self.conv(torch.cat([x, previous], dim=2).flatten(0, 1))
        return F.relu(change.unflatten(0, x.shape[:2]) + x)


class _TimeGrow(nn.Module):
    """A pointwise convolution that makes one or two frames of each."""

    def __init__(self, width: int, *, doubles: bool) -> None:
        super().__init__()
        self.frames = 2 if doubles else 1
        self.conv = nn.Conv2d(width, width * self.frames, 1, bias=False)

    def forward(self, x: Float[Tensor, 'b n c h w']) -> Float[Tensor, 'b m c h w']:
        grown = self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return grown.unflatten(2, (self.frames, -1)).flatten(1, 2)


class TinyDecoder(nn.Module):
    """Decodes normalised latents to frames."""

    def __init__(self, config: TinyDecoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        layers: list[nn.Module] = [
            _Clamp(),
            nn.Conv2d(config.channels, widths[0], 3, padding=1),
            nn.ReLU(),
        ]
        for width, after, doubles in zip(
            widths[:-1], widths[1:], config.doubles_time, strict=True
        ):
            layers += [_MemoryBlock(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), _TimeGrow(width, doubles=doubles)]
            layers.append(nn.Conv2d(width, after, 3, padding=1, bias=False))
        layers += [nn.ReLU(), nn.Conv2d(widths[-1], 3 * config.patch**2, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)

    @property
    def strides(self) -> tuple[int, int]:
        """Return frames of a latent frame and pixels along a cell's side."""
        return 2 ** sum(self.config.doubles_time), 8 * self.config.patch

    def forward(self, latents: Float[Tensor, 'b c k h w']) -> Float[Tensor, 'b n 3 H W']:
        """Decode clips to 0..1; the first latent frame makes one frame, each other all of its."""
        x = latents.transpose(1, 2)
        for layer in self.decoder:
            if isinstance(layer, (_MemoryBlock, _TimeGrow)):
                x = layer(x)
            else:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        frames = F.pixel_shuffle(x, self.config.patch).clamp(0, 1)
        return frames[:, self.strides[0] - 1 :]


def save_decoder(folder: Path, decoder: TinyDecoder) -> None:
    """Write config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(asdict(decoder.config), indent=2) + '\n')
    tensors = {k: v.contiguous() for k, v in decoder.state_dict().items()}
    save_file(tensors, folder / 'model.safetensors')


def load_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> TinyDecoder:
    """Load what `save_decoder` wrote.

    Raises:
        ValueError: A file is missing or damaged, or the weights do not fit config.json.
    """
    path = folder / 'config.json'
    try:
        fields = read_json(path)
        lists = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
        decoder = TinyDecoder(TinyDecoderConfig(**{**fields, **lists}))
    except (TypeError, ValueError) as error:
        raise ValueError(f'{path}: not a valid decoder configuration, {error}') from None
    path = folder / 'model.safetensors'
    try:
        decoder.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise ValueError(f'{path}: the file is missing') from None
    except SafetensorError as error:
        raise ValueError(f'{path}: not a valid safetensors file, {error}') from None
    except RuntimeError as error:
        raise ValueError(f'{path}: does not fit config.json, {error}') from None
    return decoder.to(dtype).eval().requires_grad_(False)
