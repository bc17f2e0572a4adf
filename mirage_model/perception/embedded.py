"""The perception network of mirage-tiny: estimate depth, confidence, sky and dynamic objects.

Its input is a frame, the rays of its camera and the memory's depth.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
import math
from pathlib import Path

from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_model.camera import Cameras, directions
from mirage_model.io import read_json, write_json, written_whole
from mirage_model.memory import Readout
from mirage_model.perception import Estimate
from mirage_model.perception.alignment import DEFAULT_ALIGNMENT, AlignmentConfig, align

STRIDE = 16
"""Height and width of frames must be multiples of it [px]."""

_LOG_TOLERANCE = math.log(1.25)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Architecture and thresholds of the network."""

    widths: tuple[int, ...] = (24, 48, 80, 112)
    """Channels at strides 2, 4, 8 and 16."""

    canonical_focal: float = 88.0
    """Focal length for which depth is predicted; depth is scaled to the camera's [px]."""

    sky_threshold: float = 0.5
    """Probability above which a pixel is sky."""

    moving_threshold: float = 0.5
    """Probability above which a pixel is on a dynamic object."""

    max_error_ratio: float = 1.0
    """Largest ratio of the expected error of a frame's log depth to the spread of its log depth.

    Above it a constant would do as well, and the frame's confidence is 0.
    """


@dataclass(frozen=True, kw_only=True)
class NetworkOutput:
    """Raw outputs of the network."""

    log_depth: Float[Tensor, 'n h w']
    """Logarithm of depth [m]."""

    log_spread: Float[Tensor, 'n h w']
    """Logarithm of the Laplace scale of the error of ``log_depth``."""

    sky_logit: Float[Tensor, 'n h w']
    """Logit of sky."""

    moving_logit: Float[Tensor, 'n h w']
    """Logit of dynamic objects."""


@dataclass(frozen=True, kw_only=True)
class MemoryDepth:
    """The memory's depth at the cameras of frames, on a grid of any size."""

    depth: Float[Tensor, 'n h w']
    """Depth [m]; NaN where the memory is empty."""

    observed: Bool[Tensor, 'n h w']
    """True where the memory was observed, False where it was imagined."""

    @classmethod
    def of(cls, readout: Readout) -> MemoryDepth:
        """Return the depth of a readout."""
        depth = readout.depth.masked_fill(~readout.visible, torch.nan)
        return cls(depth=depth, observed=readout.observed)


class Network(nn.Module):
    """A small U-Net over colours, ray directions and the memory's depth, at half the frame's
    size.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        fine, coarse = widths[:-1], widths[1:]
        self.stem = _convolution(5 * 4 + 3, widths[0])
        self.down = nn.ModuleList(_convolution(a, b, stride=2) for a, b in zip(fine, coarse))
        self.encode = nn.ModuleList(
            nn.Sequential(_AxialContext(width), _Residual(width)) for width in coarse
        )
        self.lateral = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(fine, coarse))
        self.up = nn.ModuleList(_convolution(width, width) for width in fine)
        self.decode = nn.ModuleList(_Residual(width) for width in widths[2:-1])
        self.head = nn.Conv2d(widths[0], 4 * 4, 3, padding=1)

    def forward(
        self,
        frames: Float[Tensor, 'n 3 h w'],
        cameras: Cameras,
        memory_depth: MemoryDepth | None = None,
    ) -> NetworkOutput:
        """Predict frames in 0..1; None for ``memory_depth`` equals an empty memory."""
        focal = (cameras.K[:, 0, 0] * cameras.K[:, 1, 1]).sqrt()[:, None, None]
        log_scale = (focal / self.config.canonical_focal).log() + 1.5
        slopes = directions(cameras)[..., :2].movedim(-1, 1)
        x = F.pixel_unshuffle(torch.cat([2 * frames - 1, slopes], dim=1), 2)
        if memory_depth is None:
            memory = x.new_zeros(len(x), 3, *x.shape[2:])
        else:
            visible = memory_depth.depth.isfinite()
            log_depth = torch.where(visible, memory_depth.depth, 1.0).log() - log_scale
            memory = torch.stack([log_depth * visible, visible, memory_depth.observed], dim=1)
            memory = F.interpolate(memory, x.shape[2:], mode='nearest-exact')
        x = self.stem(torch.cat([x, memory], dim=1))
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
        return NetworkOutput(
            log_depth=log_depth + log_scale,
            log_spread=log_spread.clamp(-6.0, 2.0),
            sky_logit=sky,
            moving_logit=moving,
        )


class _AxialContext(nn.Module):
    """Add the maxima of each column and row and the mean of the image to each position.

    A wall's depth shows where it meets the floor, far below in the same column.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.column = nn.Conv2d(width, width, 1)
        self.row = nn.Conv2d(width, width, 1)
        self.everywhere = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, 'n c h w']) -> Float[Tensor, 'n c h w']:
        column = self.column(x.amax(dim=2, keepdim=True))
        row = self.row(x.amax(dim=3, keepdim=True))
        return x + column + row + self.everywhere(x.mean(dim=(2, 3), keepdim=True))


class _Residual(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Float[Tensor, 'n c h w']) -> Float[Tensor, 'n c h w']:
        return F.relu(x + self.second(self.first(x)))


def _convolution(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class EmbeddedPerception:
    """`Perception` by the embedded network, with depth scaled to the memory.

    The network sees one frame at a time; only the scale is shared by the frames of a call. Without
    a memory it sees the mirrored frame too, and what the two disagree about lowers the confidence.
    """

    segments_dynamic = True
    estimates_cameras = False

    def __init__(self, network: Network, alignment: AlignmentConfig = DEFAULT_ALIGNMENT) -> None:
        self.network = network.eval().requires_grad_(False)
        # the stubs of torch lack memory_format
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.alignment = alignment

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    @torch.inference_mode()
    def estimate(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, readout: Readout | None = None
    ) -> Estimate:
        """Estimate frames; raise ValueError unless height and width are multiples of `STRIDE`."""
        height, width = frames.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(
                f'frames: {height}x{width} does not fit the network, '
                f'height and width must be multiples of {STRIDE}'
            )
        memory_depth = None if readout is None else MemoryDepth.of(readout)
        prediction = self.network(frames, cameras, memory_depth)
        config = self.network.config
        sky = prediction.sky_logit.sigmoid() > config.sky_threshold
        moving_probability = prediction.moving_logit.sigmoid()
        confidence = 1 - (-_LOG_TOLERANCE / prediction.log_spread.exp()).exp()
        if readout is None:
            mirrored = self.network(frames.flip(3), _mirrored(cameras))
            worse = _expected_error_ratio(prediction, mirrored, ~sky) > config.max_error_ratio
            confidence = confidence.masked_fill(worse[:, None, None], 0.0)
        estimate = Estimate(
            depth=prediction.log_depth.exp().masked_fill(sky, torch.nan),
            cameras=cameras,
            confidence=confidence,
            sky=sky,
            moving=(moving_probability > config.moving_threshold) & ~sky,
            moving_probability=moving_probability,
            scaled=torch.zeros(len(frames), dtype=torch.bool, device=frames.device),
        )
        return align(estimate, readout, self.alignment)


def _mirrored(cameras: Cameras) -> Cameras:
    """Return the cameras of frames that are flipped from left to right."""
    K = cameras.K.clone()
    K[:, 0, 2] = cameras.width - 1 - K[:, 0, 2]
    return replace(cameras, K=K)


def _expected_error_ratio(
    prediction: NetworkOutput, mirrored: NetworkOutput, valid: Bool[Tensor, 'n h w']
) -> Float[Tensor, 'n']:
    """Return the expected error of each frame's log depth relative to the spread of its log depth.

    The error is the predicted one plus the mean difference from the mirrored prediction. The
    spread is the mean distance from the median, the error of a constant if the prediction is
    right.
    """
    unknown = ~valid
    log_depth = prediction.log_depth.masked_fill(unknown, torch.nan).flatten(1)
    difference = (mirrored.log_depth.flip(2) - prediction.log_depth).abs()
    error = (prediction.log_spread.exp() + difference).masked_fill(unknown, torch.nan)
    spread = (log_depth - log_depth.nanmedian(dim=1, keepdim=True).values).abs()
    return error.flatten(1).nanmean(dim=1) / spread.nanmean(dim=1)


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
    """Load a folder of `save_network` in float32.

    Raises:
        ValueError: A file is missing or damaged, or a tensor does not fit the configuration.
    """
    config_path, weights_path = folder / 'config.json', folder / 'model.safetensors'
    fields = read_json(config_path)
    try:
        network = Network(NetworkConfig(**{**fields, 'widths': tuple(fields['widths'])}))
    except (KeyError, TypeError) as error:
        raise ValueError(f'{config_path}: not a valid network configuration, {error}') from error
    try:
        tensors = load_file(weights_path)
    except FileNotFoundError:
        raise ValueError(f'{weights_path}: the file is missing') from None
    except SafetensorError as error:
        raise ValueError(f'{weights_path}: not a valid safetensors file, {error}') from error
    expected = network.state_dict()
    if tensors.keys() != expected.keys():
        names = sorted(tensors.keys() ^ expected.keys())
        raise ValueError(f'{weights_path}: missing or unexpected tensors {", ".join(names)}')
    for name, value in expected.items():
        if tensors[name].shape != value.shape:
            raise ValueError(
                f'{weights_path}: {name} has shape {tuple(tensors[name].shape)}, '
                f'{tuple(value.shape)} is needed'
            )
    network.load_state_dict(tensors)
    return network.eval()
