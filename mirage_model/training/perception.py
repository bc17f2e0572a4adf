"""Training of the embedded perception network on recorded clips."""

from __future__ import annotations

from dataclasses import asdict
import json
from pathlib import Path

from jaxtyping import Bool, Float
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from mirage_model.camera import concatenate, resized
from mirage_model.clip import Clip, clip_length, labels, load_clip
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.perception.embedded import (
    MemoryDepth,
    Network,
    NetworkConfig,
    NetworkOutput,
    load_network,
    save_network,
)
from mirage_model.training.perception_augment import FrameBatch, augment
from mirage_model.training.perception_config import (
    PerceptionConfig,
    PerceptionTraining,
    SimulatedMemoryConfig,
)
from mirage_model.training.perception_scores import evaluate
from mirage_model.training.simulated_memory import SingleFrameLatents, over_pixels, write
from mirage_model.training.trainer import Averaged, Objective, StepResult, fit, processes
from mirage_model.write_filter import write_mask


def losses(
    prediction: NetworkOutput, batch: FrameBatch, config: PerceptionConfig
) -> dict[str, Tensor]:
    """Return the weighted terms of the loss.

    The likelihood is that of a Laplace distribution of the depth error. The error in it is not
    differentiated, so that uncertain pixels weigh as much as certain ones in the depth term.
    """
    known = torch.isfinite(batch.depth) & (batch.depth > 0) & ~batch.sky & ~batch.moving
    target = torch.where(known, batch.depth, 1.0).log()
    error = torch.where(known, prediction.log_depth - target, 0.0)
    count = known.sum().clamp(min=1)
    likelihood = error.detach().abs() * (-prediction.log_spread).exp() + prediction.log_spread
    moving = batch.moving.float()
    weight = 1 + (config.moving_pixel - 1) * moving
    return {
        'depth': error.abs().sum() / count,
        'gradient': config.gradient * _gradient_error(error, known),
        'confidence': config.confidence * torch.where(known, likelihood, 0.0).sum() / count,
        'sky': config.sky
        * F.binary_cross_entropy_with_logits(prediction.sky_logit, batch.sky.float()),
        'moving': config.moving
        * (
            F.binary_cross_entropy_with_logits(prediction.moving_logit, moving, weight=weight)
            + _dice_error(prediction.moving_logit.sigmoid(), moving)
        ),
    }


def _gradient_error(
    error: Float[Tensor, 'n h w'], known: Bool[Tensor, 'n h w']
) -> Float[Tensor, '']:
    """Return the mean difference of the error between known pixels 1, 2 and 4 apart."""
    total, count = error.new_zeros(()), error.new_zeros(())
    for step in (1, 2, 4):
        for axis in (1, 2):
            size = error.shape[axis] - step
            a, b = error.narrow(axis, 0, size), error.narrow(axis, step, size)
            both = known.narrow(axis, 0, size) & known.narrow(axis, step, size)
            total = total + torch.where(both, (a - b).abs(), 0.0).sum()
            count = count + both.sum()
    return total / count.clamp(min=1)


def _dice_error(
    probability: Float[Tensor, 'n h w'], label: Float[Tensor, 'n h w']
) -> Float[Tensor, '']:
    """Return one minus the Dice coefficient."""
    both, either = (probability * label).sum(), (probability + label).sum()
    return 1 - (2 * both + 1) / (either + 1)


def read_batch(
    paths: list[Path], indices: list[int], config: SimulatedMemoryConfig, rng: np.random.Generator
) -> FrameBatch:
    """Return one frame of each clip file, with the depth that a memory of a few others gives
    it.
    """
    clips = []
    for path, index in zip(paths, indices):
        count = 0 if rng.random() < config.empty else int(rng.integers(1, config.max_frames + 1))
        others = index + rng.integers(-config.reach, config.reach + 1, size=count)
        clips.append(
            load_clip(path, at=[index, *np.clip(others, 0, clip_length(path) - 1).tolist()])
        )
    first = [clip.cameras[:1] for clip in clips]
    return FrameBatch(
        frames=torch.cat([clip.frames[:1] for clip in clips]).movedim(-1, 1).float() / 255,
        cameras=concatenate(first),
        depth=torch.cat([clip.depth[:1] for clip in clips]),
        sky=torch.cat([clip.sky[:1] for clip in clips]),
        moving=torch.cat([clip.moving[:1] for clip in clips]),
        memory_depth=_memory_depth(clips, config, rng),
        names=tuple(f'{path.stem}:{index}' for path, index in zip(paths, indices)),
    )


def _memory_depth(
    clips: list[Clip], config: SimulatedMemoryConfig, rng: np.random.Generator
) -> MemoryDepth:
    """Return the depth that a memory of all frames of each clip but the first gives the first, per
    pixel."""
    depths, observed = [], []
    for clip in clips:
        height, width = clip.depth.shape[1] // config.cell, clip.depth.shape[2] // config.cell
        cameras = resized(clip.cameras, height, width)
        memory = LatentMemory(MemoryConfig(channels=1, splat_size=config.splat_size))
        if len(clip.frames) > 1:
            depth, valid = write_mask(labels(clip, slice(1, None)), height=height, width=width)
            frames = SingleFrameLatents(
                latents=torch.zeros(len(depth), 1, height, width),
                depth=depth,
                valid=valid,
                cameras=cameras[1:],
            )
            count = int(rng.integers(len(frames) + 1))
            for part, by_sensor in ((frames[:count], True), (frames[count:], False)):
                if len(part):
                    write(memory, part, observed=by_sensor, rng=rng, config=config.noise)
        known = MemoryDepth.of(memory.readout(cameras[:1], latents=False))
        depths.append(over_pixels(known.depth, clip.depth[:1]))
        observed.append(over_pixels(known.observed, clip.depth[:1]))
    return MemoryDepth(depth=torch.cat(depths), observed=torch.cat(observed))


class PerceptionObjective(Objective):
    """Labels of single frames, with the depth that a simulated memory knows of them as an
    input.
    """

    module: Averaged[Network]

    def __init__(
        self,
        network: Network,
        config: PerceptionConfig,
        clips: list[Path],
        validation: list[Path],
    ):
        if not clips or not validation:
            raise ValueError('clips: none to train on or to validate on, record or prepare some')
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module = Averaged(network)
        self.config = config
        self.clips = clips
        self.validation = validation
        self.lengths = [clip_length(path) for path in clips]

    def step(
        self, module: nn.Module, rng: np.random.Generator, generator: torch.Generator, step: int
    ) -> StepResult:
        chosen = rng.integers(len(self.clips), size=self.config.batch).tolist()
        indices = [int(rng.integers(self.lengths[clip])) for clip in chosen]
        paths = [self.clips[clip] for clip in chosen]
        batch = read_batch(paths, indices, self.config.memory, rng)
        augmenting = torch.Generator().manual_seed(int(rng.integers(2**62)))
        batch = augment(batch, self.config.augment, augmenting).to(generator.device)
        self.module.network.train()
        prediction = module(batch.frames, batch.cameras, batch.memory_depth)
        terms = losses(prediction, batch, self.config)
        return StepResult(
            loss=torch.stack(list(terms.values())).sum(),
            logs={name: float(value.detach()) for name, value in terms.items()},
            names=list(batch.names),
        )

    def after_step(self, step: int) -> None:
        self.module.update(min(self.config.average, (1 + step) / (10 + step)))

    def validate(self, writer: SummaryWriter | None, step: int) -> dict[str, float]:
        """Return the scores of the averaged network on the validation clips."""
        scores = evaluate(self.module.average, self.validation)
        return {name: float(value) for name, value in scores.items()}


def main(config: PerceptionTraining) -> int:
    """Train from the newest checkpoint of the run folder, and write the averaged network."""
    described = config.run / 'config.json'
    folder = config.clips / 'train'
    if described.exists():  # clips that were recorded since the run began are left out
        clips = [folder / name for name in json.loads(described.read_text())['clips']]
    else:
        clips = sorted(folder.glob('*.safetensors'))
    objective = PerceptionObjective(
        _network(config),
        config.perception,
        clips,
        sorted((config.clips / 'validation').glob('*.safetensors')),
    )
    fit(
        objective,
        config.trainer,
        config.run,
        full_config={
            'perception': asdict(config.perception),
            'clips': [path.name for path in clips],
        },
    )
    if processes().is_main_process:
        save_network(config.run / 'network', objective.module.average)
        print(f'wrote {config.run / "network"}')
    return 0


def _network(config: PerceptionTraining) -> Network:
    """Return a random network, or the one that the training starts from."""
    widths = config.perception.widths
    if config.start is None:
        torch.manual_seed(config.trainer.seed)
        return Network(NetworkConfig(widths=widths))
    network = load_network(config.start)
    if network.config.widths != widths:
        raise ValueError(f'{config.start}: widths are {network.config.widths}, must be {widths}')
    return network
