"""The embedded perception network: a frame and what the memory knows of its depth in; depth, confidence,
sky and moving things out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
import json
import math
from pathlib import Path

from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_model.camera import Cameras, directions
from mirage_model.io import write_json, written_whole
from mirage_model.memory import Readout
from mirage_model.perception import Estimate
from mirage_model.perception.alignment import DEFAULT_ALIGNMENT, AlignmentConfig, align

STRIDE = 16
"""Frame sizes must be multiples of this."""

_LOG_TOLERANCE = math.log(1.25)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """``widths`` are channels at strides 2, 4, 8 and 16.

    The network predicts depth as a camera of ``canonical_focal`` pixels would see it. A pixel is
    sky or moving above its threshold in 0..1.
    """

    widths: tuple[int, ...] = (24, 48, 80, 112)
    canonical_focal: float = 88.0
    sky_threshold: float = 0.5
    moving_threshold: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Raw outputs. ``log_spread``: the log of the Laplace scale of the error of ``log_depth``."""

    log_depth: Float[Tensor, 'n h w']
    log_spread: Float[Tensor, 'n h w']
    sky_logit: Float[Tensor, 'n h w']
    moving_logit: Float[Tensor, 'n h w']


@dataclass(frozen=True, kw_only=True)
class KnownDepth:
    """What a memory knows of frames, at cells of any size: metres, NaN where it knows nothing.

    ``observed`` says where a sensor saw it.
    """

    depth: Float[Tensor, 'n h w']
    observed: Bool[Tensor, 'n h w']

    @classmethod
    def of(cls, readout: Readout) -> KnownDepth:
        depth = readout.depth.masked_fill(~readout.visible, torch.nan)
        return cls(depth=depth, observed=readout.observed)


class Network(nn.Module):
    """A small U-Net over colours, ray directions and the depth that a memory knows.

    It works at half the frame's size inside.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        fine, coarse = widths[:-1], widths[1:]
        self.stem = _convolution(5 * 4 + 3, widths[0])
        self.down = nn.ModuleList(_convolution(a, b, stride=2) for a, b in zip(fine, coarse))
        self.encode = nn.ModuleList(
            nn.Sequential(_Overview(width), _Residual(width)) for width in coarse
        )
        self.lateral = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(fine, coarse))
        self.up = nn.ModuleList(_convolution(width, width) for width in fine)
        self.decode = nn.ModuleList(_Residual(width) for width in widths[2:-1])
        self.head = nn.Conv2d(widths[0], 4 * 4, 3, padding=1)

    def forward(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, known: KnownDepth | None = None
    ) -> Prediction:
        """Without ``known`` as with one that knows nothing."""
        focal = (cameras.K[:, 0, 0] * cameras.K[:, 1, 1]).sqrt()[:, None, None]
        log_scale = (focal / self.config.canonical_focal).log() + 1.5
        slopes = directions(cameras)[..., :2].movedim(-1, 1)
        x = F.pixel_unshuffle(torch.cat([2 * frames - 1, slopes], dim=1), 2)
        if known is None:
            remembered = x.new_zeros(len(x), 3, *x.shape[2:])
        else:
            visible = known.depth.isfinite()
            log_depth = torch.where(visible, known.depth, 1.0).log() - log_scale
            remembered = torch.stack([log_depth * visible, visible, known.observed], dim=1)
            remembered = F.interpolate(remembered, x.shape[2:], mode='nearest-exact')
        x = self.stem(torch.cat([x, remembered], dim=1))
        skips = [x]
        for down, encode in zip(self.down, self.encode):
            x = encode(down(x))
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(self.lateral[level](x), scale_factor=2, mode='bilinear')
            x = self.up[level](x + skips[level])
            if level >= 2:
                x = self.decode[level - 2](x)
        log_depth, log_spread, sky, moving = F.pixel_shuffle(self.head(x).float(), 2).unbind(dim=1)
        return Prediction(
            log_depth=log_depth + log_scale,
            log_spread=log_spread.clamp(-6.0, 2.0),
            sky_logit=sky,
            moving_logit=moving,
        )


class _Overview(nn.Module):
    """Tells every cell what is in its column, in its row and anywhere.

    A wall's depth shows where it meets the floor, far below in the same column.
    """

    def __init__(self, width: int):
        super().__init__()
        self.column = nn.Conv2d(width, width, 1)
        self.row = nn.Conv2d(width, width, 1)
        self.everywhere = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, 'n c h w']) -> Float[Tensor, 'n c h w']:
        column = self.column(x.amax(dim=2, keepdim=True))
        row = self.row(x.amax(dim=3, keepdim=True))
        return x + column + row + self.everywhere(x.mean(dim=(2, 3), keepdim=True))


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first = _convolution(width, width)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Float[Tensor, 'n c h w']) -> Float[Tensor, 'n c h w']:
        return F.relu(x + self.second(self.first(x)))


def _convolution(before: int, after: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


class EmbeddedPerception:
    """`Perception` by the embedded network, its depth brought to the memory's scale.

    It looks at one frame at a time, so that a frame's estimate does not depend on its neighbours'.
    """

    def __init__(self, network: Network, alignment: AlignmentConfig = DEFAULT_ALIGNMENT):
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.alignment = alignment

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    @torch.inference_mode()
    def estimate(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, readout: Readout | None = None
    ) -> Estimate:
        """Raises ValueError for frame sizes that are no multiples of `STRIDE`."""
        height, width = frames.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f'frames must be multiples of {STRIDE} in size, got {height}x{width}')
        known = None if readout is None else KnownDepth.of(readout)
        prediction = self.network(frames, cameras, known)
        config = self.network.config
        sky = prediction.sky_logit.sigmoid() > config.sky_threshold
        estimate = Estimate(
            depth=prediction.log_depth.exp().masked_fill(sky, torch.nan),
            cameras=cameras,
            confidence=1 - (-_LOG_TOLERANCE / prediction.log_spread.exp()).exp(),
            sky=sky,
            moving=(prediction.moving_logit.sigmoid() > config.moving_threshold) & ~sky,
            scaled=torch.zeros(len(frames), dtype=torch.bool, device=frames.device),
        )
        return align(estimate, readout, self.alignment)


def save_network(folder: Path, network: Network, *, dtype: torch.dtype = torch.float16) -> None:
    """Write config.json and model.safetensors; each file is whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    with written_whole(folder / 'model.safetensors') as part:
        save_file(tensors, part)
    write_json(folder / 'config.json', asdict(network.config))


def load_network(folder: Path) -> Network:
    """Read what `save_network` wrote, as float32.

    Raises ValueError that names the file, and the tensor, that is missing or does not fit.
    """
    config_path, weights_path = folder / 'config.json', folder / 'model.safetensors'
    for path in (config_path, weights_path):
        if not path.is_file():
            raise ValueError(f'{path} is missing')
    try:
        fields = json.loads(config_path.read_text())
        network = Network(NetworkConfig(**{**fields, 'widths': tuple(fields['widths'])}))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{config_path} is not a configuration of the network: {error}'
        ) from error
    try:
        tensors = load_file(weights_path)
    except SafetensorError as error:
        raise ValueError(f'{weights_path} is not a safetensors file: {error}') from error
    expected = network.state_dict()
    if tensors.keys() != expected.keys():
        odd = sorted(tensors.keys() ^ expected.keys())
        raise ValueError(f'{weights_path}: tensors missing or not known: {", ".join(odd)}')
    for name, value in expected.items():
        if tensors[name].shape != value.shape:
            shapes = f'{tuple(tensors[name].shape)}, not {tuple(value.shape)}'
            raise ValueError(f'{weights_path}: {name} has shape {shapes}')
    network.load_state_dict(tensors)
    return network.eval()
