"""Fit of the codec and training of the resampler of mirage-tiny.

The block codec (principal components) is a closed form. The resampler starts as the splat of the
codec's patches; its U-Net learns from clips what to correct, from memories of one frame, of
several, and of frames that the resampler itself generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from jaxtyping import Bool, Float
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from mirage_model.camera import resized
from mirage_model.clip import clip_length, labels, load_clip
from mirage_model.memory import Readout
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.metrics import gradient_energy, psnr
from mirage_model.model.codec import BlockAutoencoder, Codec
from mirage_model.model.resampler import Resampler, reproject, save_resampler
from mirage_model.training.config import FirstGuessConfig, FirstGuessTraining
from mirage_model.training.simulated_memory import SingleFrameLatents, over_pixels, write
from mirage_model.training.trainer import Averaged, Objective, StepResult, fit, processes
from mirage_model.write_filter import write_mask

SMALLEST_ERROR = 1e-4
"""Added to squared errors before the logarithm: 40 dB."""
ENOUGH = 0.1
"""Share of the pixels from which a region counts in full."""
BLOCK = 8
"""Side of the blocks whose gradients are compared [px]."""
GENERATED = 4
"""Frames that are generated before a sample that continues a rollout."""


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
    depth, valid = write_mask(labels(clip, slice(None)), height=height, width=width)
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
    context, camera = singles.latents[:1], 0
    if continued:
        place = [0, *range(1 + len(visits), 1 + len(visits) + GENERATED)]
        imagined = singles[place[1:]]
        imagined = replace(
            imagined,
            latents=_generate(resampler, memory, context, singles[place])[1:],
        )
        if not empty:
            write(memory, imagined, observed=False, rng=rng, config=config.noise)
        context, camera = imagined.latents[-1:], place[-1]
    first = len(at) - config.targets
    cameras = singles.cameras[[camera, *range(first, len(at))]]
    readout = memory.readout(cameras)
    shown = reproject(context, readout[:1], cameras)
    return Targets(memory=readout[1:], context=shown[1:], frames=frames[first:])


@torch.no_grad()
def _generate(
    resampler: Resampler,
    memory: LatentMemory,
    context: Float[Tensor, '1 c h w'],
    frames: SingleFrameLatents,
) -> Float[Tensor, 'n c h w']:
    """Return the first guesses at the cameras of frames, the context frame first."""
    device = resampler.to_patch.weight.device
    readout = memory.readout(frames.cameras)
    shown = reproject(context, readout[:1], frames.cameras)
    parts = Targets(memory=readout, context=shown, frames=torch.zeros(len(frames), 3, 1, 1))
    parts = parts.to(device)
    return resampler(parts.memory, parts.context).cpu()


def losses(
    predicted: Float[Tensor, 'n 3 H W'],
    true: Float[Tensor, 'n 3 H W'],
    observed: Bool[Tensor, 'n H W'],
    config: FirstGuessConfig,
) -> dict[str, Float[Tensor, '']]:
    """Return the terms of the loss.

    Squared errors enter by their logarithm, as PSNR does, so that easy frames and hard ones count
    alike: over all pixels, over observed ones and over the others. Least squares blur what is
    uncertain. Therefore the size of the gradients in observed blocks and the contrast of a frame
    are drawn to the true ones.
    """
    error = (predicted - true).square().mean(dim=1)
    terms = {'all': _log_mean(error, torch.ones_like(observed))}
    terms['observed'] = 0.5 * _log_mean(error, observed)
    terms['holes'] = 0.5 * _log_mean(error, ~observed)
    share = F.avg_pool2d(observed[:, None].float(), BLOCK)
    sizes, true_sizes = (_gradient_size(frames) for frames in (predicted, true))
    difference = ((sizes - true_sizes).abs() * share).mean()
    terms['gradient'] = config.gradient * difference / (true_sizes * share).mean().clamp(min=1e-4)
    contrast, true_contrast = (frames.std(dim=(1, 2, 3)) for frames in (predicted, true))
    terms['contrast'] = (
        config.contrast * ((contrast + 0.01).log() - (true_contrast + 0.01).log()).abs().mean()
    )
    return terms


def _log_mean(error: Float[Tensor, 'n H W'], valid: Bool[Tensor, 'n H W']) -> Float[Tensor, '']:
    """Return the mean over frames of the log mean error over valid pixels."""
    share = valid.float().mean(dim=(1, 2))
    mean = (error * valid).mean(dim=(1, 2)) / share.clamp(min=1e-6)
    return ((mean + SMALLEST_ERROR).log() * (share / ENOUGH).clamp(max=1)).mean()


def _gradient_size(frames: Float[Tensor, 'n 3 H W']) -> Float[Tensor, 'n 1 h w']:
    """Return the root mean square difference of neighbouring pixels in each block."""
    padded = F.pad(frames, (0, 1, 0, 1), mode='replicate')
    across, down = padded.diff(dim=-1)[:, :, :-1], padded.diff(dim=-2)[..., :-1]
    energy = (across.square() + down.square()).mean(dim=1, keepdim=True)
    return (F.avg_pool2d(energy, BLOCK) + 1e-6).sqrt()


class ResamplerObjective(Objective):
    """Pixels of frames that the resampler's first guess decodes to."""

    module: Averaged[Resampler]

    def __init__(
        self,
        resampler: Resampler,
        codec: Codec,
        config: FirstGuessConfig,
        clips: Sequence[Path],
        validation: Sequence[Path],
    ):
        resampler.to_patch.requires_grad_(False)
        resampler.to_latents.requires_grad_(False)
        self.module = Averaged(resampler)
        self.codec = codec
        self.config = config
        self.clips = clips
        step = max(1, len(validation) // config.validation_clips)
        self.validation = validation[::step]

    def step(
        self, module: nn.Module, rng: np.random.Generator, generator: torch.Generator, step: int
    ) -> StepResult:
        config = self.config
        paths = [self.clips[i] for i in rng.integers(len(self.clips), size=config.scenes)]
        share = config.imagined if step >= config.imagined_from else 0.0
        parts = [
            read_targets(
                path,
                self.module.average,
                self.codec,
                config,
                rng,
                continued=bool(rng.random() < share),
            )
            for path in paths
        ]
        batch = _join(parts).to(generator.device)
        predicted = self._decode(module(batch.memory, batch.context).float())
        observed = over_pixels(batch.memory.observed, batch.frames[:, 0])
        terms = losses(predicted, batch.frames, observed, config)
        return StepResult(
            loss=torch.stack(list(terms.values())).sum(),
            logs={name: float(value.detach()) for name, value in terms.items()},
            names=[path.stem for path in paths],
        )

    def after_step(self, step: int) -> None:
        self.module.update(min(self.config.average, (step + 1) / (step + 10)))

    @torch.no_grad()
    def validate(self, writer: SummaryWriter | None, step: int) -> dict[str, float]:
        """Return metrics of the averaged resampler from a memory of each clip's first frame, and
        PSNR without its correction."""
        device = self.module.average.to_patch.weight.device
        exact = replace(self.config.noise, drop=0.0)
        config = replace(self.config, empty=0.0, visits=0.0, colour=0.0, noise=exact)
        scores: dict[str, list[float]] = {}
        for number, path in enumerate(self.validation):
            rng = np.random.default_rng(number)
            part = read_targets(
                path, self.module.average, self.codec, config, rng, continued=False
            ).to(device)
            true = part.frames
            frames = self._decode(self.module.average(part.memory, part.context)).clamp(0, 1)
            guess = self._decode(self.module.average.resample(part.memory, part.context)[0])
            observed = over_pixels(part.memory.observed, true[:, 0])
            codec = self._decode(self.codec.encode_images(true.cpu()).to(device))
            values = {
                'psnr_db': psnr(frames, true),
                'observed_psnr_db': psnr(frames, true, observed),
                'holes_psnr_db': psnr(frames, true, ~observed),
                'guess_psnr_db': psnr(guess.clamp(0, 1), true),
                'guess_observed_psnr_db': psnr(guess.clamp(0, 1), true, observed),
                'guess_holes_psnr_db': psnr(guess.clamp(0, 1), true, ~observed),
                'gradient_ratio_observed': gradient_energy(frames, observed)
                / gradient_energy(codec, observed),
                'contrast_ratio': float(frames.std() / true.std()),
            }
            for name, value in values.items():
                scores.setdefault(name, []).append(value)
        return {name: float(np.nanmean(values)) for name, values in scores.items()}

    def _decode(self, latents: Float[Tensor, 'n c h w']) -> Float[Tensor, 'n 3 H W']:
        average = self.module.average
        return F.pixel_shuffle(average.to_patch(latents), average.config.stride)


def principal_codec(paths: Sequence[Path], config: FirstGuessConfig) -> BlockAutoencoder:
    """Return the block codec fitted on some frames of each clip file; clips have one size."""
    sparse = (load_clip(path, at=range(0, clip_length(path), config.frame_step)) for path in paths)
    frames = torch.cat([clip.frames for clip in sparse]).permute(0, 3, 1, 2).float() / 255
    return fit_codec(frames, channels=config.channels, stride=config.stride)


def _join(parts: list[Targets]) -> Targets:
    def join(readouts: list[Readout]) -> Readout:
        names = vars(readouts[0])
        return Readout(**{name: torch.cat([vars(r)[name] for r in readouts]) for name in names})

    return Targets(
        memory=join([part.memory for part in parts]),
        context=join([part.context for part in parts]),
        frames=torch.cat([part.frames for part in parts]),
    )


def main(config: FirstGuessTraining) -> int:
    """Fit the codec, train the resampler from the run's newest checkpoint, and write both."""
    torch.manual_seed(config.trainer.seed)
    train, validation = (
        sorted((config.clips / split).glob('*.safetensors')) for split in ('train', 'validation')
    )
    if not train or not validation:
        raise ValueError(
            f'{config.clips}: no clips in train/ or validation/, record or prepare some first'
        )
    needed = 2 * config.first_guess.horizon + 1
    short = [path.name for path in (*train, *validation) if clip_length(path) < needed]
    if short:
        raise ValueError(
            f'{config.clips}: {short[0]} is too short, clips need {needed} frames at least'
        )
    folder = config.run / 'vae'
    if not folder.is_dir():
        principal_codec(train, config.first_guess).save_pretrained(folder)
    codec = Codec.from_folder(folder)
    resampler = Resampler.of_codec(codec, config.first_guess.widths)
    objective = ResamplerObjective(resampler, codec, config.first_guess, train, validation)
    fit(
        objective,
        config.trainer,
        config.run,
        full_config={
            'first_guess': asdict(config.first_guess),
            'clips': [path.name for path in train],
        },
    )
    if processes().is_main_process:
        save_resampler(config.run / 'resampler', objective.module.average)
        print(f'wrote {config.run}')
    return 0
