"""Training of the embedded perception network on recorded clips.

python -m mirage_model.training.perception --clips DIR --validation DIR --out DIR

A run started again on the same folder goes on where it stopped, exactly: batches are drawn by the
number of the step, and a checkpoint holds the weights, their moving average and the optimiser.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import asdict, dataclass, fields
import json
import math
import os
from pathlib import Path
import shutil

from jaxtyping import Bool, Float
import numpy as np
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mirage_model.camera import concatenate, resized
from mirage_model.clip import Clip, clip_length, load_clip
from mirage_model.io import as_json, write_json
from mirage_model.labels import labels
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.perception.embedded import (
    MemoryDepth,
    Network,
    NetworkConfig,
    Prediction,
    load_network,
    save_network,
)
from mirage_model.training.context import ContextConfig, Stills, over_pixels, write
from mirage_model.training.perception_augment import AugmentConfig, Batch, augment
from mirage_model.training.perception_scores import evaluate
from mirage_model.training.trainer import make_optimizer
from mirage_model.write_filter import write_mask


@dataclass(frozen=True, kw_only=True)
class RememberedConfig:
    """The memory that a frame is met with: nothing in the share ``empty``, else up to ``max_frames``
    others of its clip, at most ``reach`` frames away. Some are observed, the rest imagined, and as far
    off in depth as the ``noise`` of either says. ``cell`` is in pixels, ``splat_size`` in cells.
    """

    empty: float = 0.3
    max_frames: int = 3
    reach: int = 40
    cell: int = 8
    splat_size: int = 3
    noise: ContextConfig = ContextConfig(depth_frame=0.15, depth_cell=0.1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """``average`` is the decay of the moving average of the weights, which is what is saved in the
    end.

    Weights of the losses: ``gradient`` for differences of log depth between neighbours,
    ``confidence`` for the likelihood of the error, ``sky`` and ``moving`` for the labels, of which
    a moving pixel counts ``moving_pixel`` times, since there are few. ``bfloat16`` is for the
    convolutions alone.
    """

    steps: int = 3000
    batch: int = 16
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.02
    average: float = 0.995
    seed: int = 0
    checkpoint_every: int = 250
    bfloat16: bool = True
    gradient: float = 0.5
    confidence: float = 0.1
    sky: float = 0.5
    moving: float = 0.5
    moving_pixel: float = 3.0
    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    remembered: RememberedConfig = RememberedConfig()


def losses(prediction: Prediction, batch: Batch, config: TrainConfig) -> dict[str, Tensor]:
    """Weighted terms, whose sum is minimised.

    The likelihood of the error is that of a Laplace distribution. Its error is not differentiated,
    so that what the network is unsure of pulls as hard as the rest.
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
    """Mean difference of the error between known pixels 1, 2 and 4 apart: edges in the right
    place.
    """
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
    both, either = (probability * label).sum(), (probability + label).sum()
    return 1 - (2 * both + 1) / (either + 1)


def read_batch(
    paths: list[Path], indices: list[int], config: RememberedConfig, rng: np.random.Generator
) -> Batch:
    """One frame of each clip file, with what a memory of a few others of the clip knows of it."""
    clips = []
    for path, index in zip(paths, indices):
        count = 0 if rng.random() < config.empty else int(rng.integers(1, config.max_frames + 1))
        others = index + rng.integers(-config.reach, config.reach + 1, size=count)
        clips.append(
            load_clip(path, at=[index, *np.clip(others, 0, clip_length(path) - 1).tolist()])
        )
    first = [clip.cameras[:1] for clip in clips]
    return Batch(
        frames=torch.cat([clip.frames[:1] for clip in clips]).movedim(-1, 1).float() / 255,
        cameras=concatenate(first),
        depth=torch.cat([clip.depth[:1] for clip in clips]),
        sky=torch.cat([clip.sky[:1] for clip in clips]),
        moving=torch.cat([clip.moving[:1] for clip in clips]),
        known=_remembered(clips, config, rng),
        names=tuple(f'{path.stem}:{index}' for path, index in zip(paths, indices)),
    )


def _remembered(
    clips: list[Clip], config: RememberedConfig, rng: np.random.Generator
) -> MemoryDepth:
    """What a memory of all frames but the first of each clip knows of the first, pixel by pixel."""
    depths, observed = [], []
    for clip in clips:
        height, width = clip.depth.shape[1] // config.cell, clip.depth.shape[2] // config.cell
        cameras = resized(clip.cameras, height, width)
        memory = LatentMemory(MemoryConfig(channels=1, splat_size=config.splat_size))
        if len(clip.frames) > 1:
            depth, valid = write_mask(labels(clip, slice(1, None)), height=height, width=width)
            stills = Stills(
                latents=torch.zeros(len(depth), 1, height, width),
                depth=depth,
                valid=valid,
                cameras=cameras[1:],
            )
            seen = int(rng.integers(len(stills) + 1))
            for part, by_sensor in ((stills[:seen], True), (stills[seen:], False)):
                if len(part):
                    write(memory, part, observed=by_sensor, rng=rng, config=config.noise)
        known = MemoryDepth.of(memory.readout(cameras[:1], latents=False))
        depths.append(over_pixels(known.depth, clip.depth[:1]))
        observed.append(over_pixels(known.observed, clip.depth[:1]))
    return MemoryDepth(depth=torch.cat(depths), observed=torch.cat(observed))


class Trainer:
    """The state of a run and its verbs: step, save, restore."""

    def __init__(self, config: TrainConfig, clips: list[Path], *, start: Path | None = None):
        """``start`` is the folder of a network whose weights are gone on from.

        Raises ValueError if there are no clips, or the network has other widths.
        """
        if not clips:
            raise ValueError('no clips to train on')
        self.config = config
        self.clips = clips
        self.lengths = [clip_length(path) for path in clips]
        torch.manual_seed(config.seed)
        self.network = Network(config.network).to(memory_format=torch.channels_last)
        if start is not None:
            begun = load_network(start)
            if begun.config.widths != config.network.widths:
                raise ValueError(
                    f'{start} has widths {begun.config.widths}, not {config.network.widths}'
                )
            self.network.load_state_dict(begun.state_dict())
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = make_optimizer(self.network, config.learning_rate, config.weight_decay)
        self.step_number = 0

    def step(self) -> dict[str, float]:
        """One step of the optimiser; returns the losses.

        Raises FloatingPointError that names the step and the frames if the loss is not finite.
        """
        generator = torch.Generator().manual_seed((self.config.seed << 32) + self.step_number)
        clips = torch.randint(len(self.clips), (self.config.batch,), generator=generator).tolist()
        places = torch.rand(self.config.batch, generator=generator).tolist()
        indices = [int(place * self.lengths[clip]) for clip, place in zip(clips, places)]
        rng = np.random.default_rng([self.config.seed, self.step_number])
        paths = [self.clips[clip] for clip in clips]
        batch = read_batch(paths, indices, self.config.remembered, rng)
        batch = augment(batch, self.config.augment, generator)

        for group in self.optimizer.param_groups:
            group['lr'] = self._learning_rate()
        self.network.train()
        with torch.autocast('cpu', torch.bfloat16, enabled=self.config.bfloat16):
            prediction = self.network(batch.frames, batch.cameras, batch.known)
        terms = losses(prediction, batch, self.config)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f'loss is {loss} at step {self.step_number}: {batch.names}')
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f'norm of the gradient is {norm} at step {self.step_number}: {batch.names}'
            )
        self.optimizer.step()
        self._follow()
        self.step_number += 1
        return {k: float(v.detach()) for k, v in {'loss': loss, 'norm': norm, **terms}.items()}

    def _learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to nothing."""
        config = self.config
        rise = min(1.0, (self.step_number + 1) / config.warmup)
        return (
            config.learning_rate
            * rise
            * (0.5 + 0.5 * math.cos(math.pi * self.step_number / config.steps))
        )

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.config.average, (1 + self.step_number) / (10 + self.step_number))
        for mean, value in zip(
            self.average.state_dict().values(), self.network.state_dict().values()
        ):
            if value.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def save(self, folder: Path) -> None:
        """Write a checkpoint aside, then rename it; the one before the last is dropped."""
        aside = folder / 'checkpoint.part'
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        tensors = {f'network.{k}': v.contiguous() for k, v in self.network.state_dict().items()}
        tensors |= {f'average.{k}': v.contiguous() for k, v in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()['state'].items():
            tensors |= {f'optimizer.{index}.{k}': v.contiguous() for k, v in state.items()}
        save_file(tensors, aside / 'state.safetensors')
        os.replace(aside, folder / f'checkpoint-{self.step_number:07d}')
        for old in sorted(folder.glob('checkpoint-*'))[:-2]:
            shutil.rmtree(old)

    def restore(self, checkpoint: Path) -> None:
        tensors = load_file(checkpoint / 'state.safetensors')
        parts: dict[str, dict[str, Tensor]] = {'network': {}, 'average': {}, 'optimizer': {}}
        for name, value in tensors.items():
            part, _, rest = name.partition('.')
            parts[part][rest] = value
        self.network.load_state_dict(parts['network'])
        self.average.load_state_dict(parts['average'])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts['optimizer'].items():
            index, _, key = name.partition('.')
            state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()['param_groups']
        self.optimizer.load_state_dict({'state': state, 'param_groups': groups})
        self.step_number = int(checkpoint.name.rpartition('-')[2])
        for group in self.optimizer.param_groups:
            group['step'] = self.step_number


def train(
    config: TrainConfig,
    clips: list[Path],
    out: Path,
    *,
    start: Path | None = None,
    stop_at: int | None = None,
) -> Trainer:
    """Train to the end, or to step ``stop_at``, from the last checkpoint in ``out`` if there is
    one, else from the network ``start``, if that is given.

    Raises ValueError if ``out`` holds a run of another configuration or of other clips.
    """
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, clips, start=start)
    description = json.dumps(
        {'config': asdict(config), 'clips': [p.name for p in clips]}, indent=2
    )
    run_path = out / 'run.json'
    if run_path.exists() and run_path.read_text() != description:
        raise ValueError(f'{run_path} describes another run: other settings or other clips')
    run_path.write_text(description)
    checkpoints = sorted(out.glob('checkpoint-*'))
    if checkpoints:
        trainer.restore(checkpoints[-1])
    last = config.steps if stop_at is None else stop_at
    log_path = out / 'log.jsonl'
    lines = log_path.read_text().splitlines(keepends=True) if log_path.exists() else []
    log_path.write_text(''.join(lines[: trainer.step_number]))  # one a step
    with (
        open(log_path, 'a') as log,
        tqdm(total=config.steps, initial=trainer.step_number, desc='perception') as bar,
    ):
        while trainer.step_number < last:
            scores = trainer.step()
            log.write(json.dumps({'step': trainer.step_number, **scores}) + '\n')
            bar.update()
            bar.set_postfix(loss=f'{scores["loss"]:.3f}', depth=f'{scores["depth"]:.3f}')
            if trainer.step_number % config.checkpoint_every == 0 or trainer.step_number == last:
                log.flush()
                trainer.save(out)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--clips', type=Path, required=True, help='folder of clips to train on')
    parser.add_argument('--validation', type=Path, required=True, help='folder of held-out clips')
    parser.add_argument('--out', type=Path, required=True, help='folder of the run')
    parser.add_argument(
        '--from', dest='start', type=Path, help='folder of a network to go on from'
    )
    for field in fields(TrainConfig):
        name, default = f'--{field.name.replace("_", "-")}', field.default
        if isinstance(default, bool):
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=default)
        elif isinstance(default, (int, float)):
            parser.add_argument(name, type=type(default), default=default)
    given = vars(parser.parse_args())
    folders = {name: given.pop(name) for name in ('clips', 'validation', 'out')}
    start = given.pop('start')
    config = TrainConfig(**given)
    # A run keeps to the clips it began with, though others may have been recorded since.
    run_path = folders['out'] / 'run.json'
    names = json.loads(run_path.read_text())['clips'] if run_path.exists() else None
    clips = (
        sorted(folders['clips'].glob('*.safetensors'))
        if names is None
        else [folders['clips'] / name for name in names]
    )
    trainer = train(config, clips, folders['out'], start=start)
    save_network(folders['out'] / 'network', trainer.average)
    scores = evaluate(trainer.average, sorted(folders['validation'].glob('*.safetensors')))
    write_json(folders['out'] / 'validation.json', scores)
    print(as_json(scores))


if __name__ == '__main__':
    main()
