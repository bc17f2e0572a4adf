"""Fit of the codec and the resampler of mirage-tiny.

The block codec (principal components) and the resampler's linear map (least squares) are closed
forms; then the resampler's convolutions are trained on pairs of frames of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

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
from mirage_model.training.config import FirstGuessConfig, FirstGuessTraining
from mirage_model.training.trainer import Averaged, Objective, StepResult, fit, processes
from mirage_model.write_filter import write_frames


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

    def to(self, device: torch.device) -> Pairs:
        """Return the pairs on a device."""
        memory, context = (
            Readout(**{name: value.to(device) for name, value in vars(readout).items()})
            for readout in (self.memory, self.context)
        )
        return Pairs(memory=memory, context=context, targets=self.targets.to(device))


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


class ResamplerObjective(Objective):
    """Squared error of the first guess, each channel by its share of the error of the pixels."""

    module: Averaged[Resampler]

    def __init__(
        self,
        resampler: Resampler,
        config: FirstGuessConfig,
        pairs: Pairs,
        validation: Pairs,
        *,
        deviation: Float[Tensor, 'c'],
    ):
        self.module = Averaged(resampler)
        self.config = config
        self.pairs = pairs
        self.validation = validation
        variance = deviation.square()
        self.weight = (variance / variance.mean())[:, None, None]

    def step(
        self, module: nn.Module, rng: np.random.Generator, generator: torch.Generator, step: int
    ) -> StepResult:
        indices = rng.integers(len(self.pairs), size=self.config.batch)
        batch = self.pairs[torch.from_numpy(indices)].to(generator.device)
        memory = batch.memory
        if rng.random() < self.config.empty:
            memory = Readout(**{name: torch.zeros_like(v) for name, v in vars(memory).items()})
        error = module(memory, batch.context) - batch.targets
        loss = (error.square() * self.weight.to(error)).mean()
        return StepResult(loss=loss, logs={}, names=[f'pair {i}' for i in indices])

    def after_step(self, step: int) -> None:
        self.module.update(min(self.config.average, (step + 1) / (step + 10)))

    @torch.no_grad()
    def validate(self, writer: SummaryWriter | None, step: int) -> dict[str, float]:
        """Return the error of the averaged resampler, over all cells and over visible ones."""
        device = next(self.module.parameters()).device
        errors, visible = [], []
        for start in range(0, len(self.validation), self.config.batch):
            part = self.validation[start : start + self.config.batch].to(device)
            error = self.module.average(part.memory, part.context) - part.targets
            errors.append((error.square() * self.weight.to(error)).mean(dim=1))
            visible.append(part.memory.visible)
        error, mask = torch.cat(errors), torch.cat(visible)
        return {'visible_error': float(error[mask].mean()), 'error': float(error.mean())}


def principal_codec(paths: Sequence[Path], config: FirstGuessConfig) -> BlockAutoencoder:
    """Return the block codec fitted on some frames of each clip file; clips have one size."""
    sparse = (load_clip(path).frames[:: config.frame_step] for path in paths)
    frames = torch.cat(list(sparse)).permute(0, 3, 1, 2).float() / 255
    return fit_codec(frames, channels=config.channels, stride=config.stride)


def read_all_pairs(
    paths: Sequence[Path], codec: Codec, config: FirstGuessConfig, *, seed: int
) -> Pairs:
    """Return the pairs of all clip files."""
    rng = np.random.default_rng(seed)
    parts = [pair for path in paths for pair in read_pairs(load_clip(path), codec, config, rng)]
    return Pairs(
        memory=_join([part.memory for part in parts]),
        context=_join([part.context for part in parts]),
        targets=torch.cat([part.targets for part in parts]),
    )


def _join(readouts: list[Readout]) -> Readout:
    names = vars(readouts[0])
    return Readout(**{name: torch.cat([vars(r)[name] for r in readouts]) for name in names})


def main(config: FirstGuessTraining) -> int:
    """Fit the codec, train the resampler from the run's newest checkpoint, and write both."""
    seed = config.trainer.seed
    torch.manual_seed(seed)
    train, validation = (
        sorted((config.clips / split).glob('*.safetensors')) for split in ('train', 'validation')
    )
    if not train or not validation:
        raise ValueError(
            f'{config.clips}: no clips in train/ or validation/, record or prepare some first'
        )
    sizes = config.first_guess
    vae = principal_codec(train, sizes)
    codec = Codec(vae)
    pairs = read_all_pairs(train, codec, sizes, seed=seed)
    resampler = Resampler(ResamplerConfig(channels=sizes.channels, width=sizes.width))
    fit_linear(resampler, pairs, ridge=sizes.ridge)
    objective = ResamplerObjective(
        resampler,
        sizes,
        pairs,
        read_all_pairs(validation, codec, sizes, seed=seed),
        deviation=torch.tensor(vae.config.latents_std),
    )
    fit(
        objective,
        config.trainer,
        config.run,
        full_config={'first_guess': asdict(sizes), 'clips': [path.name for path in train]},
    )
    if processes().is_main_process:
        vae.save_pretrained(config.run / 'vae')
        save_resampler(config.run / 'resampler', objective.module.average)
        print(f'wrote {config.run}')
    return 0
