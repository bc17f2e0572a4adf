"""Train a small codec from scratch: stills first, then clips, then latents of clips close to those of stills, then
stills that bear being moved.

``python -m mirage_model.training.codec --clips DIR --run DIR`` runs all stages and writes the VAE folder.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
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
from mirage_model.training.reprojection import Mover, Pairs
from mirage_model.training.trainer import (
    StepResult,
    TrainerConfig,
    checkpoints,
    fit,
    load_parameters,
)

BALANCE = 0.35
RIDGE = 1e-4
"""Of the mean variance of a channel, so that a batch of flat pictures has an inverse too."""

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


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """``frames`` 1 trains on stills. Crops keep the batches large.

    ``noise`` is the deviation of what is added to the latents, ``scale`` the weight of their square, which
    bounds them. Sampling the posterior instead, from its start at a deviation of one, left latents so noisy
    that pictures stayed blurred for thousands of steps. ``alignment`` is the weight of the square between
    a clip's latents and those of each latent frame's last frame encoded alone, as `misalignment` says:
    the memory holds stills, and what of a clip's latents no still tells, a world model has to guess.

    ``pairs`` of frames are encoded whole, and what a memory of the first shows the second's camera is moved by a `Mover`: it
    is to be the second's latents, in parts of their variance by the weight ``moved``, and to be decoded to the second.
    """

    frames: int = 1
    batch: int = 16
    crop: int = 64
    noise: float = 0.02
    scale: float = 1e-4
    chroma: float = 0.5
    alignment: float = 0.0
    pairs: int = 0
    moved: float = 0.2
    validation_clips: int = 12


STAGES = {
    'stills': (CodecConfig(), TrainerConfig(steps=3000, learning_rate=2e-3, validate_every=500)),
    'video': (
        CodecConfig(frames=9, batch=4),
        TrainerConfig(steps=1500, learning_rate=2e-3, warmup_steps=50, validate_every=400),
    ),
    'aligned': (
        CodecConfig(frames=9, batch=4, alignment=0.2),
        TrainerConfig(steps=700, learning_rate=1.5e-3, warmup_steps=50, validate_every=350),
    ),
    'moved': (
        CodecConfig(frames=9, batch=3, alignment=0.2, pairs=6),
        TrainerConfig(steps=1500, learning_rate=1e-3, warmup_steps=40, validate_every=500),
    ),
}


class _Reconstruct(nn.Module):
    """Frames again, latents, and the latents of every latent frame's last frame encoded alone, if wanted.

    With a mover, of pairs: latents of both, those of the first moved, and frames of these and of both.
    """

    def __init__(self, vae: AutoencoderKLWan, *, alone: bool, moved: bool):
        super().__init__()
        self.vae = vae
        self.alone = alone
        if moved:
            self.mover = Mover(vae.config.z_dim)

    def forward(
        self, x: Tensor, noise: Tensor, pairs: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...] | None]:
        latents = self.vae.encode(x).latent_dist.mean
        alone = None
        if self.alone:
            last = x[:, :, :: self.vae.config.scale_factor_temporal]
            b, k = last.shape[0], last.shape[2]
            stills = self.vae.encode(last.transpose(1, 2).flatten(0, 1)[:, :, None])
            alone = stills.latent_dist.mean[:, :, 0].unflatten(0, (b, k)).transpose(1, 2)
        moved = None if pairs is None else self._moved(*pairs)
        return self.vae.decode(latents + noise).sample, latents, alone, moved

    def _moved(
        self, both: Tensor, cell: Tensor, offset: Tensor, depth_ratio: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        latents = self.vae.encode(both[:, :, None]).latent_dist.mean[:, :, 0]
        first, second = latents.chunk(2)
        moved = self.mover(first, cell, offset, depth_ratio)
        seen = torch.where((cell >= 0)[:, None], moved, second)
        frames = self.vae.decode((torch.cat([seen, latents]) + noise)[:, :, None]).sample
        return latents, moved, frames[:, :, 0]


def misalignment(latents: Tensor, alone: Tensor) -> Tensor:
    """Mean square between two (b, c, k, h, w), the first latent frame left out, in parts of the variance along
    each principal direction of ``latents``.

    No linear map of the latents changes it. In parts of each channel's variance a codec could make it small
    by putting nearly all variance into a few directions that align well anyway.
    """
    error = (latents - alone)[:, :, 1:].movedim(1, -1).flatten(0, -2)
    return _in_parts_of_variance(error, latents.movedim(1, -1).flatten(0, -2))


def _in_parts_of_variance(error: Tensor, cells: Tensor) -> Tensor:
    """Mean square of (n, c) along each principal direction of (m, c), in parts of the variance there."""
    covariance = torch.cov(cells.T)
    variance = covariance.diagonal()
    covariance = covariance + torch.diag(RIDGE * variance.mean().expand_as(variance))
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), error.T, upper=False
    )
    return whitened.square().sum() / max(1, whitened.numel())


def chroma(frames: Tensor) -> Tensor:
    """Red and blue against green, (..., 3, H, W) to (..., 2, H, W): what a grey picture lacks."""
    return frames[..., [0, 2], :, :] - frames[..., [1], :, :]


class CodecObjective:
    """L1 and L2 on frames, L1 on their chroma, through slightly noisy latents of bounded scale."""

    def __init__(self, vae: AutoencoderKLWan, config: CodecConfig, clips: Path, validation: Path):
        self.module = _Reconstruct(vae, alone=config.alignment > 0, moved=config.pairs > 0)
        self.config = config
        self.paths = sorted(clips.glob('*.safetensors'))
        self.validation_paths = sorted(validation.glob('*.safetensors'))[: config.validation_clips]
        if not self.paths or not self.validation_paths:
            raise ValueError(f'no clips in {clips} or {validation}')

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
        y, latents, alone, moved = module(x, self.config.noise * noise, pairs)
        y, x = y.movedim(1, 2), x.movedim(1, 2)
        logs = {
            'psnr_db': psnr(y.detach() / 2, x / 2),
            'latent_std': latents.detach().std().item(),
        }
        loss = self._apart(y, x) + self.config.scale * latents.square().mean()
        if alone is not None:
            apart = misalignment(latents, alone)
            logs['misalignment'] = apart.item()
            loss = loss + self.config.alignment * apart
        names = [self.paths[i].stem for i in chosen]
        if moved is not None:
            added, moved_logs = self._moved(pairs[0], pairs[1], *moved)
            loss, logs = loss + added, {**logs, **moved_logs}
        return StepResult(loss=loss, logs=logs, names=names)

    def _apart(self, y: Tensor, x: Tensor, where: Tensor | None = None) -> Tensor:
        """L1 and L2 between frames (..., 3, H, W) in -1..1, and L1 of chroma, over the pixels where (..., 1, H, W) is one."""
        where = torch.ones_like(y[..., :1, :, :]) if where is None else where
        weight = where / where.mean().clamp(min=RIDGE)
        error, colour = y - x, chroma(y) - chroma(x)
        on_frames = (error.abs() + error.square()) * weight
        return on_frames.mean() + self.config.chroma * (colour.abs() * weight).mean()

    def _pairs(
        self, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, ...] | None:
        """Frames of pairs, both halves, what is shown of the first, and noise; nothing where none are trained on."""
        if not self.config.pairs:
            return None
        chosen = rng.integers(len(self.paths), size=self.config.pairs)
        clips = [load_clip(self.paths[i]) for i in chosen]
        vae = self.module.vae
        pairs = Pairs.of(clips, stride=vae.config.scale_factor_spatial, rng=rng)
        device = next(self.module.parameters()).device
        b, h, w = pairs.cell.shape
        noise = torch.randn((3 * b, vae.config.z_dim, h, w), generator=generator, device=device)
        both = torch.cat([pairs.first, pairs.second]).to(device) * 2 - 1
        geometry = (pairs.cell.to(device), pairs.offset.to(device), pairs.depth_ratio.to(device))
        return both, *geometry, self.config.noise * noise

    def _moved(
        self, both: Tensor, cell: Tensor, latents: Tensor, moved: Tensor, frames: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of what was moved, and half of that of the stills themselves, so that these stay as good."""
        second, true = latents.chunk(2)[1], both.chunk(2)[1]
        seen, stills = frames[: len(true)], frames[len(true) :]
        visible = cell >= 0
        stride = self.module.vae.config.scale_factor_spatial
        where = visible[:, None].float()
        where = where.repeat_interleave(stride, 2).repeat_interleave(stride, 3)
        error = (moved - second).movedim(1, -1)[visible]
        apart = _in_parts_of_variance(error, second.movedim(1, -1).flatten(0, -2))
        loss = self._apart(seen, true, where) + 0.5 * self._apart(stills, both)
        loss = loss + self.config.moved * apart + self.config.scale * latents.square().mean()
        decibels = psnr(seen.detach() / 2, true / 2, where[:, 0] > 0)
        return loss, {'moved_psnr_db': decibels, 'moved_error': apart.item()}

    def _crop(self, path: Path, rng: np.random.Generator) -> Tensor:
        """Frames (n, 3, crop, crop) in 0..1 from a random place and time, half of them mirrored."""
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
        decibels, ratio, apart, pictures = [], [], [], []
        for path in self.validation_paths:
            x = _clip(path, frames).to(codec.device)
            latents = codec.encode(x)
            y = codec.decode(latents).clamp(0, 1).cpu()
            if frames > 1:
                stills = codec.encode_images(x[0, :: codec.temporal_stride])
                apart.append(misalignment(latents, stills.transpose(0, 1)[None]).item())
            x = x.cpu()
            decibels.append(psnr(y, x))
            ratio.append([(chroma(y) - chroma(x)).abs().mean(), chroma(x).abs().mean()])
            pictures.append(torch.cat([x[0, -1], y[0, -1]], dim=-2))
        if writer is not None:
            writer.add_image('reconstruction', torch.cat(pictures[:4], dim=-1), step)
        self.module.vae.train().requires_grad_(True)
        return {
            'psnr_db': float(np.mean(decibels)),
            'psnr_db_sd': float(np.std(decibels)),
            'chroma_ratio': float(np.divide(*np.sum(ratio, axis=0))),
            **({'misalignment': float(np.mean(apart))} if apart else {}),
        }


@torch.no_grad()
def inflate(vae: AutoencoderKLWan) -> None:
    """Start video from a codec that has only seen stills: every moment for itself.

    Taps on earlier frames, which stills never train, become zero; the convolutions that halve and double
    the frame rate keep the later frame and repeat it.
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
    """Set the VAE's latents_mean and latents_std from clips, every latent frame weighing the same."""
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
    """Turn and scale the latents so that their principal directions differ little in deviation.

    A codec may put nearly all variance into a few directions, such as brightness, in which a world model
    then learns, and the noise hides what is in the others, such as texture. Each direction gets a deviation
    that is the `BALANCE`-th power of what it does in pixels, the root mean square of what decoding makes of it,
    and the directions are turned among the channels so that no channel stands out, or with ``like`` to be as near as
    they can to the latents of another codec, so that a world model of its can go on. The map is linear, and
    folded into the convolutions on both sides of the latents: what is decoded stays the same.
    """
    normalise(vae, paths)
    codec = Codec(vae)
    generator = torch.Generator().manual_seed(0)
    latents = torch.cat([codec.encode(_clip(path).to(vae.device)) for path in paths]).cpu()
    cells = latents.movedim(1, -1).flatten(0, -2)
    energy, directions = torch.linalg.eigh(torch.cov(cells.T))
    deviation = energy.clamp(min=1e-8).sqrt()
    shown = latents[:3]
    frames = codec.decode(shown.to(vae.device))
    effect = []
    for one, along in zip(deviation, directions.T, strict=True):
        step = 0.1 * torch.randn(shown[:, :1].shape, generator=generator)
        moved = codec.decode((shown + one * step * along.view(-1, 1, 1, 1)).to(vae.device))
        effect.append(10 * (moved - frames).square().mean().sqrt().cpu())
    wanted = torch.stack(effect).clamp(min=1e-8) ** BALANCE
    spread = (wanted / deviation)[:, None] * directions.T  # of normalised latents
    if like is None:
        turn = torch.linalg.qr(torch.randn(len(effect), len(effect), generator=generator)).Q
    else:
        others = torch.cat([like.encode(_clip(path).to(like.device)) for path in paths]).cpu()
        others = others.movedim(1, -1).flatten(0, -2)
        u, _, v = torch.linalg.svd(others.T @ (cells @ spread.T))
        turn = u @ v  # orthogonal Procrustes
    fold(vae, turn @ spread)
    normalise(vae, paths)


@torch.no_grad()
def fold(vae: AutoencoderKLWan, change: Tensor) -> None:
    """Make ``change`` (c, c) @ normalised latents the VAE's own latents, with zero mean and unit deviation."""
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
    """The first frames of a clip, in 0..1."""
    with safe_open(path, framework='pt') as file:
        return file.get_slice('frames')[:frames].permute(0, 3, 1, 2).float()[None] / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--clips', required=True, type=Path, help='folder with train/ and validation/'
    )
    parser.add_argument('--run', required=True, type=Path)
    parser.add_argument('--stage', choices=tuple(STAGES), action='append', help='default: all')
    parser.add_argument('--steps', type=int, help='instead of the stage’s own count')
    parser.add_argument(
        '--from', dest='start', type=Path, help='checkpoint, or VAE folder, to start from'
    )
    parser.add_argument(
        '--compile', action='store_true', help='a minute or more first, then faster steps'
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    start, vae, like = arguments.start, AutoencoderKLWan(**TINY_VAE), None
    if start is not None and not (start / 'parameters.safetensors').is_file():
        try:
            like = Codec.from_folder(start)
            start, vae = None, load_pretrained(AutoencoderKLWan, start, torch.float32)
        except ValueError as error:
            parser.error(str(error))
        vae.train().requires_grad_(True)
    use_single_frame_convolutions(vae)
    # all but the statistics of the latents, which follow from the weights
    about = {k: vae.config[k] for k in TINY_VAE if not k.startswith('latents_')}
    paths = sorted((arguments.clips / 'train').glob('*.safetensors'))[::16]
    for name in arguments.stage or STAGES:
        config, trainer = STAGES[name]
        if arguments.steps:
            trainer = replace(trainer, steps=arguments.steps)
        objective = CodecObjective(
            vae, config, arguments.clips / 'train', arguments.clips / 'validation'
        )
        if start is not None:
            load_parameters(objective.module, start, words=('vae.',))
        if name == 'video' and like is None:
            inflate(vae)
        if name == 'aligned':
            balance(vae, paths)
            vae.train().requires_grad_(True)
        if arguments.compile:
            objective.module.compile()
        run = arguments.run / name
        fit(objective, trainer, run, full_config={'codec': asdict(config), 'vae': about})
        start = checkpoints(run)[-1]
    load_parameters(objective.module, start)
    balance(vae, paths, like)
    vae.save_pretrained(arguments.run / 'vae')
    print(f'wrote {arguments.run / "vae"}')


if __name__ == '__main__':
    main()
