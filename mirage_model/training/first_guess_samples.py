"""Samples that the resampler of mirage-tiny learns from.

A sample is a target frame of a clip with what a random memory and the context frame show its
camera: a memory of one frame, of several, and of frames that the resampler itself generated.
Reading them takes many times as long as a step of the training. So they are prepared once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from jaxtyping import Float
import numpy as np
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor
from tqdm import tqdm

from mirage_model.camera import resized
from mirage_model.clip import clip_length, labels, load_clip
from mirage_model.io import begin_run, written_whole
from mirage_model.memory import Readout
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.codec import Codec
from mirage_model.model.resampler import Resampler, reproject
from mirage_model.training.config import FirstGuessConfig
from mirage_model.training.simulated_memory import SingleFrameLatents, write
from mirage_model.write_filter import write_mask

GENERATED = 4
"""Frames that are generated before a sample that continues a rollout."""
SHARD = 384
"""Samples of a file, about."""
_STEPS = ('widths', 'batch', 'gradient', 'contrast', 'average', 'validation_clips')
"""Fields of the configuration that do not change a sample."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Target frames with what a memory and the context frame show their cameras."""

    memory: Readout
    context: Readout
    """Readout of the context frame by `reproject`."""
    frames: Float[Tensor, 'n 3 H W']
    """In 0..1."""

    def to(self, device: torch.device) -> Targets:
        """Return the targets on a device."""
        memory, context = (
            Readout(**{name: value.to(device) for name, value in vars(readout).items()})
            for readout in (self.memory, self.context)
        )
        return Targets(memory=memory, context=context, frames=self.frames.to(device))


def read_targets(
    path: Path,
    resampler: Resampler,
    codec: Codec,
    config: FirstGuessConfig,
    rng: np.random.Generator,
    *,
    continued: bool,
) -> Targets:
    """Return random target frames of a clip with the readouts of a random memory.

    Args:
        resampler: Generates the frames before the context frame of a continued sample.
        continued: Whether the memory and the context frame come from a rollout, which began
            ``horizon`` frames earlier.
    """
    length, horizon = clip_length(path), config.horizon
    before = horizon if continued else 0
    now = int(rng.integers(before, length - horizon))
    steps = np.linspace(now - before, now, GENERATED + 1).astype(int).tolist()
    generated = steps[1:] if continued else []
    count = int(rng.integers(1, config.max_visits + 1)) if rng.random() < config.visits else 0
    visits = [int(i) for i in rng.integers(length, size=count)]
    chosen = now + 1 + rng.choice(horizon, size=config.targets, replace=False)
    at = [now - before, *visits, *generated, *chosen.tolist()]
    clip = load_clip(path, at=at)
    gain = torch.from_numpy(rng.uniform(1 - config.colour, 1 + config.colour, 3)).float()
    frames = (clip.frames.permute(0, 3, 1, 2) / 255 * gain[:, None, None]).clamp(0, 1)
    height, width = (side // codec.spatial_stride for side in frames.shape[2:])
    truth = labels(clip, slice(None))
    depth, valid = write_mask(truth, height=height, width=width)
    singles = SingleFrameLatents(
        latents=codec.encode_images(frames),
        depth=depth,
        valid=valid,
        cameras=resized(clip.cameras, height, width),
    )
    memory = LatentMemory(MemoryConfig(channels=codec.channels, splat_size=config.splat_size))
    empty = rng.random() < config.empty
    if not empty:
        observed = singles[: 1 + len(visits)]
        write(memory, observed, observed=True, rng=rng, config=config.noise)
    pixel_depth = truth.depth_with_sky()
    context, camera = singles.latents[:1], 0
    if continued:
        place = [0, *range(1 + len(visits), 1 + len(visits) + GENERATED)]
        start = singles[place]
        guesses = _show(resampler, memory, context, pixel_depth[:1], start)
        with torch.no_grad():
            imagined = replace(start, latents=resampler(guesses.memory, guesses.context))
        if not empty:
            write(memory, imagined[1:], observed=False, rng=rng, config=config.noise)
        context, camera = imagined.latents[-1:], place[-1]
        pixel_depth = pixel_depth * float(np.exp(rng.normal(0, config.noise.depth_frame)))
    first = len(at) - config.targets
    shown = _show(
        resampler,
        memory,
        context,
        pixel_depth[camera : camera + 1],
        singles[[camera, *range(first, len(at))]],
    )
    return Targets(memory=shown.memory[1:], context=shown.context[1:], frames=frames[first:])


def _show(
    resampler: Resampler,
    memory: LatentMemory,
    context: Float[Tensor, '1 c h w'],
    depth: Float[Tensor, '1 H W'],
    frames: SingleFrameLatents,
) -> Targets:
    """Return what the memory and the context frame show the cameras of frames, the context
    frame's first."""
    readout = memory.readout(frames.cameras)
    image = resampler.decode(context).detach()
    shown = reproject(image, depth, readout[:1], frames.cameras)
    return Targets(memory=readout, context=shown, frames=image)


@torch.no_grad()
def prepare_samples(
    folder: Path,
    clips: Sequence[Path],
    resampler: Resampler,
    codec: Codec,
    config: FirstGuessConfig,
    *,
    seed: int,
) -> list[Path]:
    """Write the samples that a folder lacks, and return its files.

    A file holds ``inputs`` (n, c, h, w) of the U-Net in float16, ``frames`` (n, 3, H, W) in uint8
    and ``observed`` (n, h, w). It depends on the seed and its number alone, so an interrupted
    command continues.

    Raises:
        ValueError: The folder was begun with another configuration or other clips.
    """
    description = {k: v for k, v in asdict(config).items() if k not in _STEPS}
    begin_run(
        folder / 'config.json',
        {**description, 'seed': seed, 'clips': [path.name for path in clips]},
    )
    per_file = max(1, min(SHARD, config.samples) // config.targets)
    count = -(-config.samples // (per_file * config.targets))
    paths = [folder / f'{number:05d}.safetensors' for number in range(count)]
    for number, path in enumerate(tqdm(paths, desc='samples', unit='file')):
        if path.exists():
            continue
        rng = np.random.default_rng((seed, number))
        parts: dict[str, list[Tensor]] = {'inputs': [], 'frames': [], 'observed': []}
        for _ in range(per_file):
            targets = read_targets(
                clips[int(rng.integers(len(clips)))],
                resampler,
                codec,
                config,
                rng,
                continued=bool(rng.random() < config.imagined),
            )
            _, inputs = resampler.resample(targets.memory, targets.context)
            parts['inputs'].append(inputs.half())
            parts['frames'].append((targets.frames * 255).round().byte())
            parts['observed'].append(targets.memory.observed)
        with written_whole(path) as part:
            save_file(
                {name: torch.cat(values).contiguous() for name, values in parts.items()}, part
            )
    return paths


def read_samples(
    path: Path, count: int, rng: np.random.Generator
) -> tuple[Float[Tensor, 'n c h w'], Float[Tensor, 'n 3 H W'], Tensor]:
    """Return inputs, frames in 0..1 and observed cells of random samples of a file."""
    stored = load_file(path)
    rows = torch.from_numpy(rng.integers(len(stored['frames']), size=count))
    inputs, frames, observed = (stored[name][rows] for name in ('inputs', 'frames', 'observed'))
    return inputs.float(), frames.float() / 255, observed
