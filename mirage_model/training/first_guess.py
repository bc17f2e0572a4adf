"""Fit of the codec and training of the resampler of mirage-tiny.

The block codec (principal components) is a closed form. The resampler starts as the splat of the
codec's patches; its U-Net learns what to correct, from prepared samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from jaxtyping import Bool, Float
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from mirage_model.clip import clip_length, load_clip
from mirage_model.metrics import gradient_energy, psnr
from mirage_model.model.codec import BlockAutoencoder, Codec
from mirage_model.model.resampler import Resampler, UNet, save_resampler
from mirage_model.training.config import FirstGuessConfig, FirstGuessTraining
from mirage_model.training.first_guess_samples import (
    prepare_samples,
    read_samples,
    read_targets,
)
from mirage_model.training.simulated_memory import over_pixels
from mirage_model.training.trainer import Averaged, Objective, StepResult, fit, processes

SMALLEST_ERROR = 1e-4
"""Added to squared errors before the logarithm: 40 dB."""
ENOUGH = 0.1
"""Share of the pixels from which a region counts in full."""
BLOCK = 8
"""Side of the blocks whose gradients are compared [px]."""


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
    """Pixels of frames that the corrected first guess decodes to."""

    module: Averaged[UNet]

    def __init__(
        self,
        resampler: Resampler,
        codec: Codec,
        config: FirstGuessConfig,
        samples: Sequence[Path],
        validation: Sequence[Path],
    ):
        assert resampler.correction is not None, 'widths: none, there is nothing to train'
        self.resampler = resampler.requires_grad_(False)
        network = resampler.correction.requires_grad_(True)
        # the stubs of torch lack memory_format
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module = Averaged(network)
        self.codec = codec
        self.config = config
        self.samples = samples
        step = max(1, len(validation) // config.validation_clips)
        self.validation = validation[::step]

    @property
    def average(self) -> Resampler:
        """The resampler with the averaged weights."""
        result = Resampler(self.resampler.config)
        tensors = {f'correction.{k}': v for k, v in self.module.average.state_dict().items()}
        result.load_state_dict({**self.resampler.state_dict(), **tensors})
        return result.to(self.resampler.to_patch.weight.device).requires_grad_(False)

    def step(
        self, module: nn.Module, rng: np.random.Generator, generator: torch.Generator, step: int
    ) -> StepResult:
        path = self.samples[int(rng.integers(len(self.samples)))]
        inputs, frames, observed = (
            part.to(generator.device) for part in read_samples(path, self.config.batch, rng)
        )
        guess = inputs[:, : self.codec.channels]
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        predicted = self.resampler.decode(guess + module(inputs).float())
        terms = losses(predicted, frames, over_pixels(observed, frames[:, 0]), self.config)
        return StepResult(
            loss=torch.stack(list(terms.values())).sum(),
            logs={name: float(value.detach()) for name, value in terms.items()},
            names=[path.stem],
        )

    def after_step(self, step: int) -> None:
        self.module.update(min(self.config.average, (step + 1) / (step + 10)))

    @torch.no_grad()
    def validate(self, writer: SummaryWriter | None, step: int) -> dict[str, float]:
        """Return metrics of the averaged resampler from a memory of each clip's first frame, and
        PSNR without its correction."""
        average = self.average
        device = average.to_patch.weight.device
        exact = replace(self.config.noise, drop=0.0)
        config = replace(self.config, empty=0.0, visits=0.0, colour=0.0, noise=exact)
        scores: dict[str, list[float]] = {}
        for number, path in enumerate(self.validation):
            rng = np.random.default_rng(number)
            part = read_targets(path, average, self.codec, config, rng, continued=False)
            part = part.to(device)
            true = part.frames
            frames = average.decode(average(part.memory, part.context)).clamp(0, 1)
            guess = average.decode(average.resample(part.memory, part.context)[0]).clamp(0, 1)
            observed = over_pixels(part.memory.observed, true[:, 0])
            codec = average.decode(self.codec.encode_images(true.cpu()).to(device))
            values = {
                'psnr_db': psnr(frames, true),
                'observed_psnr_db': psnr(frames, true, observed),
                'holes_psnr_db': psnr(frames, true, ~observed),
                'guess_psnr_db': psnr(guess, true),
                'guess_observed_psnr_db': psnr(guess, true, observed),
                'guess_holes_psnr_db': psnr(guess, true, ~observed),
                'gradient_ratio_observed': gradient_energy(frames, observed)
                / gradient_energy(codec, observed),
                'contrast_ratio': float(frames.std() / true.std()),
            }
            for name, value in values.items():
                scores.setdefault(name, []).append(value)
        return {name: float(np.nanmean(values)) for name, values in scores.items()}


def principal_codec(paths: Sequence[Path], config: FirstGuessConfig) -> BlockAutoencoder:
    """Return the block codec fitted on some frames of each clip file; clips have one size."""
    sparse = (load_clip(path, at=range(0, clip_length(path), config.frame_step)) for path in paths)
    frames = torch.cat([clip.frames for clip in sparse]).permute(0, 3, 1, 2).float() / 255
    return fit_codec(frames, channels=config.channels, stride=config.stride)


def main(config: FirstGuessTraining) -> int:
    """Fit the codec, prepare samples, train the resampler from the run's newest checkpoint, and
    write both."""
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
    samples = prepare_samples(
        config.run / 'samples',
        train,
        Resampler.of_codec(codec, ()),
        codec,
        config.first_guess,
        seed=config.trainer.seed,
    )
    resampler = Resampler.of_codec(codec, config.first_guess.widths)
    objective = ResamplerObjective(resampler, codec, config.first_guess, samples, validation)
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
        save_resampler(config.run / 'resampler', objective.average)
        print(f'wrote {config.run}')
    return 0
