"""Resample a memory's latents at the cameras of a chunk: the first guess of its clean latents.

Three sources, in order: the memory where a latent point is visible, moved as patches of pixels;
the context frame, each pixel moved by its depth; and a fill from the surroundings. A U-Net
corrects the result. The first guess is the whole prediction of a model without a transformer, and
what a transformer of prediction 'first_guess' corrects.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
import json
from pathlib import Path

import cv2
from jaxtyping import Bool, Float
import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_model.camera import Cameras, resized
from mirage_model.io import read_json
from mirage_model.memory import Memory, Readout
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.codec import BlockAutoencoder, Codec
from mirage_model.model.patch_splatting import splat_patches

FARTHEST = 1000.0
"""Depth of the context frame where the memory shows none at all [m]."""
CONTEXT_WEIGHT = 0.03
"""Weight of the context frame's pixels relative to those of the memory."""
ENOUGH = 0.25
"""Share of a pixel that patches must cover to leave it unfilled."""
INPAINT_RADIUS = 3
"""Radius of Telea's inpainting [px]."""
OTHER_INPUTS = 8
"""Input channels of the U-Net beside latents."""


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """Sizes of a resampler."""

    channels: int
    """Latent channels."""

    stride: int = 4
    """Height and width of a cell [px]."""

    widths: tuple[int, ...] = (64, 128, 192, 256)
    """Channels of the U-Net at the size of the grid, a half, a quarter and so on; none leaves
    it out."""

    def __post_init__(self) -> None:
        if min(self.channels, self.stride, *self.widths, 1) < 1:
            raise ValueError(
                f'channels, stride, widths: {self.channels}, {self.stride} and {self.widths} are '
                'not allowed, at least 1 is needed'
            )


class Resampler(nn.Module):
    """Estimate the latents that a camera would see from the latents that a memory shows it.

    The latents are decoded to patches of pixels by a linear map, splatted, and encoded by another.
    A U-Net, which starts at zero, adds a correction.
    """

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.config = config
        c, pixels = config.channels, 3 * config.stride**2
        self.to_patch = nn.Conv2d(c, pixels, 1)
        self.to_latents = nn.Conv2d(pixels, c, 1)
        self.correction = None
        if config.widths:
            self.correction = UNet(3 * c + OTHER_INPUTS, config.widths, c)

    @classmethod
    def of_codec(cls, codec: Codec, widths: tuple[int, ...]) -> Resampler:
        """Return a resampler with the linear maps of a block codec, and no correction yet."""
        assert isinstance(codec.vae, BlockAutoencoder), 'only a block codec is linear'
        c, stride = codec.channels, codec.spatial_stride
        resampler = cls(ResamplerConfig(channels=c, stride=stride, widths=widths))
        basis = torch.cat([torch.zeros(1, c, 1, 1), torch.eye(c)[:, :, None, None]])
        patches = codec.decode_images(basis).flatten(1)
        pixels = patches.shape[1]
        frames = torch.cat([torch.zeros(1, pixels), torch.eye(pixels)])
        latents = codec.encode_images(frames.view(-1, 3, stride, stride)).flatten(1)
        for layer, outputs in ((resampler.to_patch, patches), (resampler.to_latents, latents)):
            assert layer.bias is not None
            with torch.no_grad():
                layer.bias.copy_(outputs[0])
                layer.weight.copy_((outputs[1:] - outputs[0]).T[:, :, None, None])
        return resampler

    def forward(self, readout: Readout, context: Readout) -> Float[Tensor, 'n c h w']:
        """Return the first guess.

        Args:
            readout: Readout of the memory, on the latent grid.
            context: Readout of the context frame by `reproject`, at pixels.
        """
        guess, inputs = self.resample(readout, context)
        return guess if self.correction is None else guess + self.correction(inputs)

    def resample(
        self, readout: Readout, context: Readout
    ) -> tuple[Float[Tensor, 'n c h w'], Float[Tensor, 'n inputs h w']]:
        """Return the first guess without correction, and the inputs of the correction."""
        with torch.autocast(readout.latents.device.type, enabled=False):
            return self._resample(readout, context)

    def _resample(self, readout: Readout, context: Readout) -> tuple[Tensor, Tensor]:
        stride = self.config.stride
        patches = self.to_patch(readout.latents).unflatten(1, (3, stride, stride))
        of_memory = splat_patches(patches, readout)
        of_context = splat_patches(context.latents[:, :, None, None], context, edge=0.5)
        total = of_memory[0] + CONTEXT_WEIGHT * of_context[0]
        weight = of_memory[1] + CONTEXT_WEIGHT * of_context[1]
        image = total / weight.clamp(min=1e-12)
        cover = of_memory[1] + of_context[1]
        known = cover[:, 0] > ENOUGH
        filled = torch.where(
            known.any(dim=(1, 2))[:, None, None, None],
            fill(image, known),
            self.decode(torch.zeros_like(readout.latents)),
        )
        guess = self._encode(torch.lerp(filled, image, (2 * cover).clamp(max=1)))
        inputs = [guess]
        for shown, (own_total, own_weight) in ((readout, of_memory), (context, of_context)):
            side = shown.visible.shape[-1] // guess.shape[-1]
            seen = F.avg_pool2d(shown.visible[:, None].float(), side)
            nearness = torch.where(shown.visible, 1 / (1 + shown.depth), 0.0)[:, None]
            inputs += [
                torch.where(seen > 0, self._encode(own_total / own_weight.clamp(min=1e-12)), 0.0),
                seen,
                F.avg_pool2d(own_weight, stride).clamp(max=2),
                F.avg_pool2d(nearness, side),
            ]
        rows, columns = (torch.linspace(-1, 1, size).to(guess) for size in guess.shape[-2:])
        position = torch.stack(torch.meshgrid(rows, columns, indexing='ij'))
        inputs.append(position.expand(len(guess), -1, -1, -1))
        return guess, torch.cat(inputs, dim=1)

    def decode(self, latents: Float[Tensor, 'n c h w']) -> Float[Tensor, 'n 3 H W']:
        """Return the pixels of latents, in 0..1 but for what the code loses."""
        return F.pixel_shuffle(self.to_patch(latents), self.config.stride)

    def _encode(self, image: Float[Tensor, 'n 3 H W']) -> Float[Tensor, 'n c h w']:
        return self.to_latents(F.pixel_unshuffle(image, self.config.stride))


class UNet(nn.Module):
    """Residual blocks at several sizes of the grid; the output starts at zero."""

    def __init__(self, inputs: int, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.before = nn.ModuleList(_Residual(width) for width in widths)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.middle = nn.Sequential(_Residual(widths[-1]), _Residual(widths[-1]))
        self.up = nn.ModuleList(
            nn.Conv2d(b, a, 1) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.after = nn.ModuleList(_Residual(width) for width in widths)
        self.last = nn.Conv2d(widths[0], outputs, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, 'n inputs h w']) -> Float[Tensor, 'n outputs h w']:
        height, width = x.shape[-2:]
        step = 2 ** len(self.down)
        # an odd grid is continued to the next size that halves evenly
        x = F.pad(x, (0, -width % step, 0, -height % step), mode='replicate')
        x = self.first(x)
        skips = []
        for level, block in enumerate(self.before):
            x = block(x)
            skips.append(x)
            if level < len(self.down):
                x = self.down[level](x)
        x = self.middle(x)
        for level in reversed(range(len(skips))):
            if level < len(self.up):
                x = F.interpolate(self.up[level](x), scale_factor=2.0, mode='nearest')
            x = self.after[level](x + skips[level])
        return self.last(F.silu(x))[..., :height, :width]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, 'n c h w']) -> Float[Tensor, 'n c h w']:
        return x + self.second(F.silu(self.first(F.silu(x))))


def fill(
    image: Float[Tensor, 'n 3 H W'], known: Bool[Tensor, 'n H W']
) -> Float[Tensor, 'n 3 H W']:
    """Fill unknown pixels: the mean of Telea's inpainting and of a fill along rows.

    Inpainting continues edges. Rows keep floor, walls and ceiling apart where a camera turns out
    of what is known.
    """
    rows = push_pull(image, known, step=(1, 2))
    rows = push_pull(rows, known.any(dim=-1, keepdim=True).expand_as(known))
    filled = 0.5 * (rows + inpainted(image, known))
    return torch.where(known[:, None], image, filled)


def inpainted(
    image: Float[Tensor, 'n 3 H W'], known: Bool[Tensor, 'n H W']
) -> Float[Tensor, 'n 3 H W']:
    """Return the image with unknown pixels inpainted by Telea's method, in 256 levels."""
    levels = (image.clamp(0, 1) * 255).round().byte().movedim(1, -1).cpu().numpy()
    holes = (~known).byte().cpu().numpy()
    filled = [
        cv2.inpaint(frame, hole, INPAINT_RADIUS, cv2.INPAINT_TELEA)
        for frame, hole in zip(levels, holes, strict=True)
    ]
    return torch.from_numpy(np.stack(filled)).movedim(-1, 1).to(image) / 255


def push_pull(
    values: Float[Tensor, 'n c h w'],
    valid: Bool[Tensor, 'n h w'],
    *,
    step: tuple[int, int] = (2, 2),
) -> Float[Tensor, 'n c h w']:
    """Fill invalid cells smoothly from valid ones around (push-pull); zero if there are none.

    Gortler et al., The Lumigraph, 1996, section 3.4.

    Args:
        step: Rows and columns that become one at each level; (1, 2) fills each row on its own.
    """
    weight = valid[:, None].to(values)
    total = values * weight
    levels = []
    while any(size > 1 for size, by in zip(total.shape[-2:], step, strict=True) if by > 1):
        levels.append((total, weight))
        total = F.avg_pool2d(total, step, ceil_mode=True)
        weight = F.avg_pool2d(weight, step, ceil_mode=True)
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
    depth: Float[Tensor, '1 H W'] | None = None,
) -> Readout:
    """Return the memory's readout at a chunk's cameras, with the first guess as its latents.

    Without a resampler the latents stay those of the memory.

    Args:
        cameras: On the latent grid; the context frame's camera first.
        context: Latents of the context frame.
        depth: Depth of the context frame, as in `reproject`.
    """
    readout = memory.readout(cameras)
    if resampler is None:
        return readout
    shown = reproject(resampler.decode(context), depth, readout[:1], cameras)
    return replace(readout, latents=resampler(readout, shown))


def reproject(
    frame: Float[Tensor, '1 3 H W'],
    depth: Float[Tensor, '1 H W'] | None,
    readout: Readout,
    cameras: Cameras,
) -> Readout:
    """Return what a memory of the context frame's pixels shows the cameras of its chunk.

    Depth that is unknown is the memory's, and where that has none it is filled from around. A
    frame at whose camera the memory shows nothing is far away, whatever its depth.

    Args:
        frame: Context frame, RGB.
        depth: Depth of its pixels [m]; infinite in the sky, NaN where it is unknown. None if none
            is known.
        readout: Readout of the memory at the context frame's camera.
        cameras: On the latent grid; the context frame's camera first.

    Returns:
        A readout at the size of the frame; its latents are RGB.
    """
    size: tuple[int, int] = frame.shape[-2:]  # type: ignore[assignment]
    inverse = torch.where(readout.visible, readout.depth, torch.nan).reciprocal()
    inverse = F.interpolate(inverse[:, None], size, mode='nearest')[:, 0]
    if depth is not None and readout.visible.any():
        inverse = torch.where(depth.isnan(), inverse, depth.reciprocal())
    known = inverse.isfinite()
    filled = push_pull(torch.where(known, inverse, 0.0)[:, None], known)[:, 0]
    memory = LatentMemory(MemoryConfig(channels=3, splat_size=3, voxel=0.0, dtype='float32'))
    memory.write(
        frame,
        filled.clamp(min=1 / FARTHEST).reciprocal(),
        resized(cameras[:1], *size),
        valid=torch.ones_like(known),
        observed=True,
    )
    return memory.readout(resized(cameras, *size))


def save_resampler(folder: Path, resampler: Resampler) -> None:
    """Write config.json and model.safetensors, whose numbers are rounded to 16 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(asdict(resampler.config), indent=2) + '\n')
    tensors = {k: v.half().contiguous() for k, v in resampler.state_dict().items()}
    save_file(tensors, folder / 'model.safetensors')


def load_resampler(folder: Path) -> Resampler:
    """Load what `save_resampler` wrote, in float32.

    Raises:
        ValueError: A file is missing or damaged, or the weights do not fit config.json.
    """
    path = folder / 'config.json'
    try:
        fields = read_json(path)
        config = ResamplerConfig(**{**fields, 'widths': tuple(fields['widths'])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: not a valid resampler configuration, {error}') from None
    resampler = Resampler(config)
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
