"""Training of a small codec: on images, on clips, aligned with single-frame latents, under
reprojection."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from jaxtyping import Float
import numpy as np
from safetensors import safe_open
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from mirage_model.clip import load_clip
from mirage_model.metrics import psnr
from mirage_model.model.codec import Codec, load_pretrained, use_single_frame_convolutions
from mirage_model.training.config import CodecConfig, CodecTraining, TrainerConfig
from mirage_model.training.reprojection_loss import FramePairs, ReprojectionHead
from mirage_model.training.trainer import Objective, StepResult, checkpoints, fit, load_parameters

BALANCE = 0.35
"""Exponent of `balance`."""
RIDGE = 1e-4
"""Share of the mean variance that is added to covariances, so that those of flat images have an
inverse."""

TINY_VAE = {
    'base_dim': 40,
    'decoder_base_dim': 40,
    'z_dim': 16,
    'dim_mult': [1, 1],
    'num_res_blocks': 1,
    'attn_scales': [],
    'temperal_downsample': [False],
    'is_residual': True,
    'in_channels': 12,
    'out_channels': 12,
    'patch_size': 2,
    'scale_factor_spatial': 4,
    'scale_factor_temporal': 1,
    'latents_mean': [0.0] * 16,
    'latents_std': [1.0] * 16,
}


STAGES: dict[str, tuple[CodecConfig, TrainerConfig]] = {
    'images': (CodecConfig(), TrainerConfig(steps=3000, learning_rate=2e-3, validate_every=500)),
    'video': (
        CodecConfig(frames=9, batch=4),
        TrainerConfig(steps=1500, learning_rate=2e-3, warmup_steps=50, validate_every=400),
    ),
    'aligned': (
        CodecConfig(frames=9, batch=4, alignment=0.2),
        TrainerConfig(steps=700, learning_rate=1.5e-3, warmup_steps=50, validate_every=350),
    ),
    'reprojection': (
        CodecConfig(frames=9, batch=3, alignment=0.2, pairs=6),
        TrainerConfig(steps=1500, learning_rate=1e-3, warmup_steps=40, validate_every=500),
    ),
}


class _Reconstruct(nn.Module):
    """All calls of the codec in a training step, in one module that accelerate can prepare."""

    def __init__(self, vae: AutoencoderKLWan, *, alone: bool, with_head: bool):
        super().__init__()
        self.vae = vae
        self.alone = alone
        if with_head:
            self.head = ReprojectionHead(vae.config.z_dim)

    def forward(
        self, x: Tensor, noise: Tensor, pairs: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...] | None]:
        """Return decoded frames, latents, single-frame latents, and the outputs for pairs.

        Single-frame latents are those of the last frame of each latent frame, encoded alone.
        """
        latents = self.vae.encode(x).latent_dist.mean
        alone = None
        if self.alone:
            last = x[:, :, :: self.vae.config.scale_factor_temporal]
            b, k = last.shape[0], last.shape[2]
            single = self.vae.encode(last.transpose(1, 2).flatten(0, 1)[:, :, None])
            alone = single.latent_dist.mean[:, :, 0].unflatten(0, (b, k)).transpose(1, 2)
        resampled = None if pairs is None else self._resample(*pairs)
        return self.vae.decode(latents + noise).sample, latents, alone, resampled

    def _resample(
        self, both: Tensor, cell: Tensor, offset: Tensor, depth_ratio: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents of both frames, the first's resampled, and decoded frames of these and of
        both."""
        latents = self.vae.encode(both[:, :, None]).latent_dist.mean[:, :, 0]
        first, second = latents.chunk(2)
        resampled = self.head(first, cell, offset, depth_ratio)
        filled = torch.where((cell >= 0)[:, None], resampled, second)
        frames = self.vae.decode((torch.cat([filled, latents]) + noise)[:, :, None]).sample
        return latents, resampled, frames[:, :, 0]


def misalignment(latents: Tensor, alone: Tensor) -> Tensor:
    """Return the mean squared difference of two (b, c, k, h, w) relative to the variance of
    ``latents``.

    The variance is that along each principal direction, so that no linear map of the latents
    changes the result. Relative to each channel's variance, a codec could make it small by a few
    well-aligned directions with nearly all variance. The first latent frame is left out.
    """
    error = (latents - alone)[:, :, 1:].movedim(1, -1).flatten(0, -2)
    return _relative_to_variance(error, latents.movedim(1, -1).flatten(0, -2))


def _relative_to_variance(error: Tensor, cells: Tensor) -> Tensor:
    """Return the mean square of errors (n, c) relative to the variance of cells (m, c) along each
    principal direction."""
    covariance = torch.cov(cells.T)
    variance = covariance.diagonal()
    covariance = covariance + torch.diag(RIDGE * variance.mean().expand_as(variance))
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), error.T, upper=False
    )
    return whitened.square().sum() / max(1, whitened.numel())


def chroma(frames: Tensor) -> Tensor:
    """Return red and blue minus green, (..., 3, H, W) to (..., 2, H, W): zero for grey images."""
    return frames[..., [0, 2], :, :] - frames[..., [1], :, :]


class CodecObjective(Objective):
    """L1 and L2 of frames and L1 of their chroma, decoded from slightly noisy latents of bounded
    scale.

    Sampling the posterior instead, with an initial deviation of 1, left images blurred for
    thousands of steps.
    """

    def __init__(self, vae: AutoencoderKLWan, config: CodecConfig, clips: Path, validation: Path):
        self.module = _Reconstruct(vae, alone=config.alignment > 0, with_head=config.pairs > 0)
        self.config = config
        self.paths = sorted(clips.glob('*.safetensors'))
        self.validation_paths = sorted(validation.glob('*.safetensors'))[: config.validation_clips]
        if not self.paths or not self.validation_paths:
            raise ValueError(
                f'{clips}, {validation}: no clips in one of them, record or prepare some'
            )

    def step(
        self, module, rng: np.random.Generator, generator: torch.Generator, step: int
    ) -> StepResult:
        chosen = rng.integers(len(self.paths), size=self.config.batch)
        frames = torch.stack([self._crop(self.paths[i], rng) for i in chosen])
        device = next(self.module.parameters()).device
        x = frames.movedim(2, 1).to(device) * 2 - 1
        vae = self.module.vae
        k = (x.shape[2] - 1) // vae.config.scale_factor_temporal + 1
        stride = vae.config.scale_factor_spatial
        shape = (len(x), vae.config.z_dim, k, x.shape[3] // stride, x.shape[4] // stride)
        noise = torch.randn(shape, generator=generator, device=device)
        pairs = self._pairs(rng, generator)
        y, latents, alone, resampled = module(x, self.config.noise * noise, pairs)
        y, x = y.movedim(1, 2), x.movedim(1, 2)
        logs = {
            'psnr_db': psnr(y.detach() / 2, x / 2),
            'latent_std': latents.detach().std().item(),
        }
        loss = self._error(y, x) + self.config.scale * latents.square().mean()
        if alone is not None:
            apart = misalignment(latents, alone)
            logs['misalignment'] = apart.item()
            loss = loss + self.config.alignment * apart
        names = [self.paths[i].stem for i in chosen]
        if pairs is not None:
            added, more_logs = self._reprojection_loss(pairs[0], pairs[1], *resampled)
            loss, logs = loss + added, {**logs, **more_logs}
        return StepResult(loss=loss, logs=logs, names=names)

    def _error(self, y: Tensor, x: Tensor, where: Tensor | None = None) -> Tensor:
        """Return L1 plus L2 of frames (..., 3, H, W) in -1..1 and L1 of chroma, over pixels where
        the mask (..., 1, H, W) is one."""
        where = torch.ones_like(y[..., :1, :, :]) if where is None else where
        weight = where / where.mean().clamp(min=RIDGE)
        error, colour = y - x, chroma(y) - chroma(x)
        on_frames = (error.abs() + error.square()) * weight
        return on_frames.mean() + self.config.chroma * (colour.abs() * weight).mean()

    def _pairs(
        self, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, ...] | None:
        """Return the frames of pairs, the readout of the first ones, and noise; None without
        pairs."""
        if not self.config.pairs:
            return None
        chosen = rng.integers(len(self.paths), size=self.config.pairs)
        clips = [load_clip(self.paths[i]) for i in chosen]
        vae = self.module.vae
        pairs = FramePairs.of(clips, stride=vae.config.scale_factor_spatial, rng=rng)
        device = next(self.module.parameters()).device
        b, h, w = pairs.cell.shape
        noise = torch.randn((3 * b, vae.config.z_dim, h, w), generator=generator, device=device)
        both = torch.cat([pairs.first, pairs.second]).to(device) * 2 - 1
        geometry = (pairs.cell.to(device), pairs.offset.to(device), pairs.depth_ratio.to(device))
        return both, *geometry, self.config.noise * noise

    def _reprojection_loss(
        self, both: Tensor, cell: Tensor, latents: Tensor, resampled: Tensor, frames: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of resampled latents, plus half of that of the frames themselves, and
        logs."""
        second, true = latents.chunk(2)[1], both.chunk(2)[1]
        reprojected, single = frames[: len(true)], frames[len(true) :]
        visible = cell >= 0
        stride = self.module.vae.config.scale_factor_spatial
        where = visible[:, None].float()
        where = where.repeat_interleave(stride, 2).repeat_interleave(stride, 3)
        error = (resampled - second).movedim(1, -1)[visible]
        apart = _relative_to_variance(error, second.movedim(1, -1).flatten(0, -2))
        loss = self._error(reprojected, true, where) + 0.5 * self._error(single, both)
        loss = (
            loss + self.config.reprojection * apart + self.config.scale * latents.square().mean()
        )
        decibels = psnr(reprojected.detach() / 2, true / 2, where[:, 0] > 0)
        return loss, {'reprojected_psnr_db': decibels, 'reprojection_error': apart.item()}

    def _crop(self, path: Path, rng: np.random.Generator) -> Tensor:
        """Return frames (n, 3, crop, crop) in 0..1 of a random place and time, half of them
        mirrored."""
        n, crop = self.config.frames, self.config.crop
        with safe_open(path, framework='pt') as file:
            stored = file.get_slice('frames')
            count, height, width, _ = stored.get_shape()
            start = int(rng.integers(count - n + 1))
            clip = stored[start : start + n]
        top, left = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
        clip = clip[:, top : top + crop, left : left + crop].permute(0, 3, 1, 2).float() / 255
        return clip.flip(-1) if rng.random() < 0.5 else clip

    @torch.no_grad()
    def validate(self, writer: SummaryWriter | None, step: int) -> dict[str, float]:
        codec = Codec(self.module.vae)
        frames = 17 if self.config.frames > 1 else 1
        decibels, ratio, apart, images = [], [], [], []
        for path in self.validation_paths:
            x = _clip(path, frames).to(codec.device)
            latents = codec.encode(x)
            y = codec.decode(latents).clamp(0, 1).cpu()
            if frames > 1:
                single = codec.encode_images(x[0, :: codec.temporal_stride])
                apart.append(misalignment(latents, single.transpose(0, 1)[None]).item())
            x = x.cpu()
            decibels.append(psnr(y, x))
            ratio.append([(chroma(y) - chroma(x)).abs().mean(), chroma(x).abs().mean()])
            images.append(torch.cat([x[0, -1], y[0, -1]], dim=-2))
        if writer is not None:
            writer.add_image('reconstruction', torch.cat(images[:4], dim=-1), step)
        self.module.vae.train().requires_grad_(True)
        return {
            'psnr_db': float(np.mean(decibels)),
            'psnr_db_sd': float(np.std(decibels)),
            'chroma_ratio': float(np.divide(*np.sum(ratio, axis=0))),
            **({'misalignment': float(np.mean(apart))} if apart else {}),
        }


@torch.no_grad()
def inflate(vae: AutoencoderKLWan) -> None:
    """Initialise a video codec from one that was trained on images: frames do not mix.

    Taps on earlier frames become zero, since images do not train them. The convolutions that halve
    and double the frame rate keep the later frame and repeat it.
    """
    for module in vae.modules():
        if not isinstance(module, WanCausalConv3d) or module.kernel_size[0] == 1:
            continue
        module.weight[:, :, :-1] = 0
        if module.kernel_size == (3, 1, 1):
            identity = torch.eye(module.in_channels)
            module.weight[:, :, -1, 0, 0] = identity.repeat(
                module.out_channels // len(identity), 1
            )
            module.bias.zero_()


@torch.no_grad()
def normalise(vae: AutoencoderKLWan, paths: list[Path]) -> None:
    """Set latents_mean and latents_std of the VAE from clips, all latent frames weighted
    equally.
    """
    codec = Codec(vae)
    moments = []
    for path in paths:
        x = _clip(path).to(vae.device)
        moments.append(vae.encode(x.movedim(2, 1) * 2 - 1).latent_dist.mode())
    latents = torch.cat(moments).movedim(1, 0).flatten(1)
    vae.register_to_config(
        latents_mean=[round(v, 5) for v in latents.mean(dim=1).tolist()],
        latents_std=[round(v, 5) for v in latents.std(dim=1).tolist()],
    )
    assert codec.channels == len(vae.config.latents_mean)


@torch.no_grad()
def balance(vae: AutoencoderKLWan, paths: list[Path], like: Codec | None = None) -> None:
    """Rotate and scale the latents so that their principal directions have similar deviations.

    A codec may put nearly all variance into a few directions, such as brightness; noise then hides
    the others, such as texture, from a world model. Each direction gets the deviation e^`BALANCE`,
    with e the root mean square change of pixels per unit of it. A rotation then mixes the
    directions: a random one, or with ``like`` the one that is closest to the latents of that
    codec, so that its world model can be trained on. The linear map is folded into the
    convolutions on both sides of the latents, which leaves decoded frames the same.
    """
    normalise(vae, paths)
    codec = Codec(vae)
    generator = torch.Generator().manual_seed(0)
    latents = torch.cat([codec.encode(_clip(path).to(vae.device)) for path in paths]).cpu()
    cells = latents.movedim(1, -1).flatten(0, -2)
    energy, directions = torch.linalg.eigh(torch.cov(cells.T))
    deviation = energy.clamp(min=1e-8).sqrt()
    probed = latents[:3]
    frames = codec.decode(probed.to(vae.device))
    effect = []
    for size, direction in zip(deviation, directions.T, strict=True):
        step = 0.1 * torch.randn(probed[:, :1].shape, generator=generator)
        changed = codec.decode((probed + size * step * direction.view(-1, 1, 1, 1)).to(vae.device))
        effect.append(10 * (changed - frames).square().mean().sqrt().cpu())
    wanted = torch.stack(effect).clamp(min=1e-8) ** BALANCE
    spread = (wanted / deviation)[:, None] * directions.T  # of normalised latents
    if like is None:
        rotation = torch.linalg.qr(torch.randn(len(effect), len(effect), generator=generator)).Q
    else:
        others = torch.cat([like.encode(_clip(path).to(like.device)) for path in paths]).cpu()
        others = others.movedim(1, -1).flatten(0, -2)
        u, _, v = torch.linalg.svd(others.T @ (cells @ spread.T))
        rotation = u @ v  # orthogonal Procrustes
    fold(vae, rotation @ spread)
    normalise(vae, paths)


@torch.no_grad()
def fold(vae: AutoencoderKLWan, change: Tensor) -> None:
    """Fold a linear map (c, c) of normalised latents into the VAE, whose latents it then gives."""
    mean = torch.tensor(vae.config.latents_mean)
    std = torch.tensor(vae.config.latents_std)
    channels = len(mean)
    to_new = (change / std).to(vae.device)
    to_old = (torch.linalg.inv(change.double()).float() * std[:, None]).to(vae.device)
    mean = mean.to(vae.device)
    encoded, decoded = vae.quant_conv, vae.post_quant_conv
    shape = (-1, channels, 1, 1, 1)
    rows = encoded.weight[:channels].flatten(1)
    encoded.weight[:channels] = (to_new @ rows).view_as(encoded.weight[:channels])
    encoded.bias[:channels] = to_new @ (encoded.bias[:channels] - mean)
    columns = decoded.weight.flatten(1)
    decoded.bias += columns @ mean
    decoded.weight.copy_((columns @ to_old).view(shape))
    vae.register_to_config(latents_mean=[0.0] * channels, latents_std=[1.0] * channels)


def _clip(path: Path, frames: int = 17) -> Float[Tensor, '1 {frames} 3 H W']:
    """Return the first frames of a clip in 0..1."""
    with safe_open(path, framework='pt') as file:
        return file.get_slice('frames')[:frames].permute(0, 3, 1, 2).float()[None] / 255


def main(config: CodecTraining) -> int:
    """Train the stages one after the other, and write the VAE folder."""
    torch.manual_seed(0)
    start, vae, like = config.start, AutoencoderKLWan(**TINY_VAE), None
    if start is not None and not (start / 'parameters.safetensors').is_file():
        like = Codec.from_folder(start)
        vae, start = load_pretrained(AutoencoderKLWan, start, torch.float32), None
        vae.train().requires_grad_(True)
    use_single_frame_convolutions(vae)
    # the statistics of the latents depend on the weights
    described = {k: vae.config[k] for k in TINY_VAE if not k.startswith('latents_')}
    paths = sorted((config.clips / 'train').glob('*.safetensors'))[::16]
    for name in config.stage or STAGES:
        stage, trainer = STAGES[name]
        if config.steps is not None:
            trainer = replace(trainer, steps=config.steps)
        objective = CodecObjective(vae, stage, config.clips / 'train', config.clips / 'validation')
        if start is not None:
            load_parameters(objective.module, start, words=('vae.',))
        if name == 'video' and like is None:
            inflate(vae)
        if name == 'aligned':
            balance(vae, paths)
            vae.train().requires_grad_(True)
        if config.compile:
            objective.module.compile()
        run = config.run / name
        fit(objective, trainer, run, full_config={'codec': asdict(stage), 'vae': described})
        start = checkpoints(run)[-1]
    assert start is not None, 'a training has a stage at least'
    load_parameters(objective.module, start)
    balance(vae, paths, like)
    vae.save_pretrained(config.run / 'vae')
    print(f'wrote {config.run / "vae"}')
    return 0
