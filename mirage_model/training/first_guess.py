"""Fit of the codec and the resampler of mirage-tiny.

The block codec (principal components) and the resampler's linear map (least squares) are closed
forms; the resampler's convolutions are trained on pairs of frames of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import logging
import math
from pathlib import Path

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirage_model.camera import resized
from mirage_model.clip import Clip, labels, load_clip
from mirage_model.memory import Readout
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.codec import BlockAutoencoder, Codec
from mirage_model.model.resampler import (
    TERMS,
    Resampler,
    ResamplerConfig,
    cells,
    reproject,
    save_resampler,
    terms,
)
from mirage_model.training.config import FirstGuessCommand, FirstGuessConfig
from mirage_model.write_filter import write_frames

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Target frames with what memories of one earlier frame show their cameras."""

    memory: Readout
    context: Readout
    """Readout of the context frame by `reproject`."""
    targets: Float[Tensor, 'n c h w']
    """Latents of the target frames."""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: slice | Tensor) -> Pairs:
        return Pairs(
            memory=self.memory[index], context=self.context[index], targets=self.targets[index]
        )


def fit_codec(frames: Float[Tensor, 'n 3 H W'], *, channels: int, stride: int) -> BlockAutoencoder:
    """Return the block codec of the principal components of frames in 0..1."""
    x = frames * 2 - 1
    mean = x.mean(dim=(0, 2, 3))
    blocks = F.unfold(x - mean[:, None, None], stride, stride=stride)
    blocks = blocks.movedim(1, 2).flatten(0, 1).double()
    variance, vectors = torch.linalg.eigh(blocks.T @ blocks / len(blocks))
    basis = vectors.flip(1)[:, :channels].T.float()
    centre = basis @ mean.repeat_interleave(stride * stride)
    latent_mean = basis @ blocks.mean(dim=0).float()
    vae = BlockAutoencoder(
        z_dim=channels,
        scale_factor_spatial=stride,
        latents_mean=latent_mean.tolist(),
        latents_std=(variance.flip(0)[:channels].float() - latent_mean.square()).sqrt().tolist(),
    )
    weight = basis.unflatten(1, (3, stride, stride))
    vae.load_state_dict(
        {
            'encoder.weight': weight,
            'encoder.bias': -centre,
            'decoder.weight': weight,
            'decoder.bias': mean,
        }
    )
    return vae


def read_pairs(
    clip: Clip, codec: Codec, config: FirstGuessConfig, rng: np.random.Generator
) -> list[Pairs]:
    """Return pairs of a clip: a memory of one frame and of its labels, read at later frames."""
    frames = clip.frames.permute(0, 3, 1, 2).float() / 255
    stride = codec.spatial_stride
    cameras = resized(clip.cameras, frames.shape[2] // stride, frames.shape[3] // stride)
    pairs = []
    for start in rng.integers(len(frames) - config.horizon, size=config.contexts):
        memory = LatentMemory(
            MemoryConfig(channels=codec.channels, splat_size=config.splat_size, dtype='float32')
        )
        first = slice(int(start), int(start) + 1)
        write_frames(memory, frames[first], labels(clip, first), codec=codec, observed=True)
        gaps = 1 + rng.choice(config.horizon, size=config.targets, replace=False)
        index = [int(start), *(int(start + gap) for gap in gaps)]
        readout = memory.readout(cameras[index])
        context = reproject(codec.encode_images(frames[first]), readout[:1], cameras[index])
        pairs.append(
            Pairs(
                memory=readout[1:],
                context=context[1:],
                targets=codec.encode_images(frames[index[1:]]),
            )
        )
    return pairs


def fit_linear(resampler: Resampler, pairs: Pairs, *, ridge: float, batch: int = 16) -> None:
    """Set the resampler's linear map to the least squares over the visible cells."""
    c = resampler.config.channels
    size = TERMS * 9 * (c + 1)
    gram = torch.zeros(size, size, dtype=torch.float64)
    product = torch.zeros(size, c, dtype=torch.float64)
    for part in (pairs[i : i + batch] for i in range(0, len(pairs), batch)):
        visible = part.memory.visible
        around = F.unfold(cells(part.memory), 3, padding=1)
        around = around.unflatten(2, visible.shape[1:]).movedim(1, -1)[visible]
        factors = terms(part.memory).movedim(1, -1)[visible]
        inputs = (factors[:, :, None] * around[:, None]).flatten(1)
        gram += (inputs.T @ inputs).double()
        product += (inputs.T @ part.targets.movedim(1, -1)[visible]).double()
    gram += ridge * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    weight = torch.linalg.solve(gram, product).float().view(TERMS, c + 1, 3, 3, c)
    with torch.no_grad():
        resampler.linear.weight.copy_(weight.permute(0, 4, 1, 2, 3).flatten(0, 1))


def train_correction(
    resampler: Resampler, pairs: Pairs, config: FirstGuessConfig, *, weight: Float[Tensor, 'c']
) -> None:
    """Train all weights on the squared error of the targets, ``weight`` by channel; keep their
    average."""
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        resampler.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4
    )
    average = {name: value.clone() for name, value in resampler.state_dict().items()}
    weight = (weight / weight.mean())[:, None, None]
    for step in range(config.steps):
        rate = 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group['lr'] = config.learning_rate * min(1, (step + 1) / 50) * max(0.02, rate)
        chosen = pairs[torch.randint(len(pairs), (config.batch,), generator=generator)]
        memory = chosen.memory
        if torch.rand((), generator=generator) < config.empty:
            memory = Readout(**{name: torch.zeros_like(v) for name, v in vars(memory).items()})
        error = resampler(memory, chosen.context) - chosen.targets
        loss = (error.square() * weight).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(resampler.parameters(), 1.0)
        optimizer.step()
        decay = min(config.average, (step + 1) / (step + 10))
        for name, value in resampler.state_dict().items():
            average[name].lerp_(value, 1 - decay)
        if step % 200 == 0:
            _log.info('step %d: loss %.4f', step, loss.detach().item())
    resampler.load_state_dict(average)


def fit(paths: Sequence[Path], config: FirstGuessConfig) -> tuple[BlockAutoencoder, Resampler]:
    """Fit codec and resampler on clip files of one size."""
    torch.manual_seed(config.seed)
    sparse = (load_clip(path).frames[:: config.frame_step] for path in paths)
    frames = torch.cat(list(sparse)).permute(0, 3, 1, 2).float() / 255
    vae = fit_codec(frames, channels=config.channels, stride=config.stride)
    codec = Codec(vae)
    rng = np.random.default_rng(config.seed)
    parts = [pair for path in paths for pair in read_pairs(load_clip(path), codec, config, rng)]
    pairs = Pairs(
        memory=_join([part.memory for part in parts]),
        context=_join([part.context for part in parts]),
        targets=torch.cat([part.targets for part in parts]),
    )
    _log.info('%d pairs of frames from %d clips', len(pairs), len(paths))
    resampler = Resampler(ResamplerConfig(channels=config.channels, width=config.width))
    fit_linear(resampler, pairs, ridge=config.ridge)
    if config.width:
        # the square of a latent's deviation is its share of the squared error of the pixels
        deviations = torch.tensor(vae.config.latents_std)
        train_correction(resampler, pairs, config, weight=deviations.square())
    return vae, resampler


def _join(readouts: list[Readout]) -> Readout:
    names = vars(readouts[0])
    return Readout(**{name: torch.cat([vars(r)[name] for r in readouts]) for name in names})


def main(config: FirstGuessCommand) -> int:
    """Fit codec and resampler, and write their folders."""
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    paths = sorted(config.clips.glob('*.safetensors'))
    if not paths:
        raise ValueError(f'{config.clips}: no clips, record or prepare some first')
    vae, resampler = fit(paths, config.first_guess)
    vae.save_pretrained(config.out / 'vae')
    save_resampler(config.out / 'resampler', resampler)
    print(f'wrote {config.out}')
    return 0
