"""Resample a memory's latents at the cameras of a chunk: the first guess of its clean latents.

Three sources, in order: the memory where a latent point is visible, the context frame reprojected
with the memory's depth, and a fill from the surroundings. The first guess is the whole prediction
of a model without a transformer, and what a transformer of prediction 'first_guess' corrects.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
import json
from pathlib import Path

from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_model.camera import Cameras
from mirage_model.io import read_json
from mirage_model.memory import Memory, Readout
from mirage_model.memory.latent import LatentMemory, MemoryConfig

TERMS = 10
"""Monomials up to degree two of offset x, offset y and depth ratio."""

DILATIONS = (1, 2, 4, 1)
FARTHEST = 1000.0
"""Depth of the context frame where the memory shows none at all [m]."""


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """Sizes of a resampler."""

    channels: int
    """Latent channels."""

    width: int = 64
    """Channels of the convolutions that correct the first guess; 0 leaves them out."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.width < 0:
            raise ValueError(
                f'channels, width: {self.channels} and {self.width} are not allowed, '
                'at least 1 and 0 are needed'
            )


class Resampler(nn.Module):
    """Estimate the latents that a camera would see from the latents that a memory shows it.

    A linear map of the 3x3 cells around, with their visibility, whose coefficients are polynomials
    of the point's offset in the cell and of its depth ratio. Convolutions then correct the filled
    grid.
    """

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.config = config
        c, width = config.channels, config.width
        self.linear = nn.Conv2d(c + 1, TERMS * c, 3, padding=1, bias=False)
        self.correction = nn.Sequential()
        if width:
            self.correction = nn.Sequential(nn.Conv2d(2 * c + 5, width, 3, padding=1))
            self.correction.extend(_Residual(width, dilation) for dilation in DILATIONS)
            last = nn.Conv2d(width, c, 3, padding=1)
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
            self.correction.append(last)

    def resample(self, readout: Readout) -> Float[Tensor, 'n c h w']:
        """Return the latents at the cell centres; they mean something only where a point is
        visible."""
        mapped = self.linear(cells(readout)).unflatten(1, (TERMS, -1))
        return (mapped * terms(readout)[:, :, None]).sum(dim=1)

    def forward(self, readout: Readout, context: Readout) -> Float[Tensor, 'n c h w']:
        """Return the first guess from the readouts of the memory and of the context frame
        alone.
        """
        shown = _prefer(readout, context)
        guess = push_pull(self.resample(shown), shown.visible)
        if not self.config.width:
            return guess
        inputs = [
            guess,
            shown.latents,
            readout.visible[:, None].float(),
            shown.visible[:, None].float(),
            shown.offset,
            shown.depth_ratio[:, None],
        ]
        return guess + self.correction(torch.cat(inputs, dim=1))


def cells(readout: Readout) -> Float[Tensor, 'n channels h w']:
    """Return the channels that the linear map takes: latents and visibility."""
    return torch.cat([readout.latents, readout.visible[:, None].float()], dim=1)


def terms(readout: Readout) -> Float[Tensor, 'n terms h w']:
    """Return the monomials that the linear map's coefficients are polynomials of."""
    x, y = readout.offset.unbind(dim=1)
    z = readout.depth_ratio
    one = torch.ones_like(z)
    return torch.stack([one, x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], dim=1)


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, 'n c h w']) -> Float[Tensor, 'n c h w']:
        return x + self.mix(F.silu(self.spread(F.silu(x))))


def _prefer(first: Readout, second: Readout) -> Readout:
    """Return ``first`` with ``second`` in the cells where ``first`` shows nothing."""
    visible = first.visible

    def pick(a: Tensor, b: Tensor) -> Tensor:
        mask = visible if a.ndim == visible.ndim else visible[:, None]
        return torch.where(mask, a, b)

    second_values = vars(second)
    return Readout(**{name: pick(a, second_values[name]) for name, a in vars(first).items()})


def push_pull(
    values: Float[Tensor, 'n c h w'], valid: Bool[Tensor, 'n h w']
) -> Float[Tensor, 'n c h w']:
    """Fill invalid cells smoothly from valid ones around (push-pull); zero if there are none.

    Gortler et al., The Lumigraph, 1996, section 3.4.
    """
    weight = valid[:, None].to(values)
    total = values * weight
    levels = []
    while max(total.shape[-2:]) > 1:
        levels.append((total, weight))
        total = F.avg_pool2d(total, 2, ceil_mode=True)
        weight = F.avg_pool2d(weight, 2, ceil_mode=True)
    result = total / weight.clamp(min=1e-6)
    for total, weight in reversed(levels):
        coarse = F.interpolate(result, total.shape[-2:], mode='bilinear')
        result = torch.lerp(coarse, total / weight.clamp(min=1e-6), weight.sqrt())
    return result


def read_first_guess(
    resampler: Resampler | None,
    memory: Memory,
    cameras: Cameras,
    context: Float[Tensor, '1 c h w'],
) -> Readout:
    """Return the memory's readout at a chunk's cameras, with the first guess as its latents.

    Without a resampler the latents stay those of the memory.

    Args:
        cameras: On the latent grid; the context frame's camera first.
        context: Latents of the context frame.
    """
    readout = memory.readout(cameras)
    if resampler is None:
        return readout
    return replace(readout, latents=resampler(readout, reproject(context, readout[:1], cameras)))


def reproject(context: Float[Tensor, '1 c h w'], readout: Readout, cameras: Cameras) -> Readout:
    """Return what a memory of the context frame alone shows the cameras of its chunk.

    Args:
        context: Latents of the context frame.
        readout: Readout at the context frame's camera; its depth, filled, places the latents.
        cameras: On the latent grid; the context frame's camera first.
    """
    inverse = torch.where(readout.visible, readout.depth, torch.inf).reciprocal()
    depth = push_pull(inverse[:, None], readout.visible)[:, 0].clamp(min=1 / FARTHEST).reciprocal()
    memory = LatentMemory(
        MemoryConfig(channels=context.shape[1], splat_size=3, voxel=0.0, dtype='float32')
    )
    everywhere = torch.ones_like(readout.visible)
    memory.write(context, depth, cameras[:1], valid=everywhere, observed=True)
    return memory.readout(cameras)


def save_resampler(folder: Path, resampler: Resampler) -> None:
    """Write config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(asdict(resampler.config), indent=2) + '\n')
    tensors = {k: v.contiguous() for k, v in resampler.state_dict().items()}
    save_file(tensors, folder / 'model.safetensors')


def load_resampler(folder: Path) -> Resampler:
    """Load what `save_resampler` wrote, in float32.

    Raises:
        ValueError: A file is missing or damaged, or the weights do not fit config.json.
    """
    path = folder / 'config.json'
    try:
        resampler = Resampler(ResamplerConfig(**read_json(path)))
    except (TypeError, ValueError) as error:
        raise ValueError(f'{path}: not a valid resampler configuration, {error}') from None
    path = folder / 'model.safetensors'
    try:
        resampler.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise ValueError(f'{path}: the file is missing') from None
    except SafetensorError as error:
        raise ValueError(f'{path}: not a valid safetensors file, {error}') from None
    except RuntimeError as error:
        raise ValueError(f'{path}: does not fit config.json, {error}') from None
    return resampler.eval().requires_grad_(False)
