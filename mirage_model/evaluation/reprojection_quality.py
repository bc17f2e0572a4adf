"""Measure how well latents survive reprojection: ``mirage evaluate reprojection``.

A frame's latents are written to a memory with true depth and read back from the camera of a later
frame; three convolutions, trained on other maps, repair what was read; PSNR counts covered cells
alone. Against it: pixels warped the same way and then encoded, and the codec's own reconstruction
of the true frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mirage_model.camera import Cameras, resized
from mirage_model.clip import Clip, load_clip
from mirage_model.evaluation.config import ReprojectionConfig
from mirage_model.io import write_json
from mirage_model.memory.depth_grid import depth_to_grid
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.checkpoint import EMBEDDED
from mirage_model.model.codec import Codec

GAPS = (4, 8, 16)
LEARNED = {
    'latents, one point a cell': ('image', 1, False),
    'latents, one point a cell, offset and depth ratio': ('image', 1, True),
    'latents, splats up to 3x3': ('image', 3, False),
    'latents, splats up to 3x3, offset and depth ratio': ('image', 3, True),
    'video latents, one point a cell, offset and depth ratio': ('video', 1, True),
    'pixels warped, then encoded': ('pixels', 1, False),
}
"""Source of the latents, splat size, and whether the extra channels are given."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A source frame and a target ``gap`` frames later, with the video latents that end at the
    source."""

    source: Tensor
    depth: Tensor
    camera: Cameras
    video: Tensor
    target: Tensor
    target_camera: Cameras


def pairs_of(clip: Clip, codec: Codec, *, gap: int, rng: np.random.Generator) -> Pair:
    """Draw a random pair. The video latents are of five frames that end at the source."""
    start = int(rng.integers(4, len(clip.frames) - gap))
    frames = clip.frames.permute(0, 3, 1, 2).float() / 255
    hidden = clip.sky | clip.moving
    return Pair(
        source=frames[start][None].clone(),
        depth=clip.depth[start].masked_fill(hidden[start], torch.nan)[None],
        camera=clip.cameras[start : start + 1],
        video=codec.encode(frames[None, start - 4 : start + 1])[:, :, -1],
        target=frames[start + gap][None].clone(),
        target_camera=clip.cameras[start + gap : start + gap + 1],
    )


def reproject(pair: Pair, codec: Codec, source: str, splat_size: int) -> tuple[Tensor, Tensor]:
    """Write the source and read it at the target.

    Returns:
        Channels (1, c + 4, h, w): latents, visible, offset and depth ratio; and visible (1, h, w).
    """
    height, width = pair.source.shape[-2:]
    h, w = height // codec.spatial_stride, width // codec.spatial_stride
    if source == 'pixels':
        memory = LatentMemory(MemoryConfig(channels=3, voxel=0.0, dtype='float32'))
        memory.write(pair.source, pair.depth, pair.camera, valid=pair.depth > 0, observed=True)
        readout = memory.readout(pair.target_camera)
        frame = torch.where(readout.visible[:, None], readout.latents, 0.5)
        covered = nn.functional.adaptive_avg_pool2d(readout.visible.float(), (h, w)) > 0.5
        nothing = torch.zeros(1, 3, h, w)
        return torch.cat(
            [codec.encode_images(frame), covered[:, None].float(), nothing], 1
        ), covered
    memory = LatentMemory(
        MemoryConfig(channels=codec.channels, voxel=0.0, splat_size=splat_size, dtype='float32')
    )
    depth, has_depth, edge = depth_to_grid(pair.depth, h, w)
    latents = codec.encode_images(pair.source) if source == 'image' else pair.video
    memory.write(
        latents, depth, resized(pair.camera, h, w), valid=has_depth & ~edge, observed=True
    )
    readout = memory.readout(resized(pair.target_camera, h, w))
    extra = [readout.visible[:, None].float(), readout.offset, readout.depth_ratio[:, None]]
    return torch.cat([readout.latents, *extra], 1), readout.visible


def repair_network(channels: int, extra: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels + extra, 64, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(64, channels, 3, padding=1),
    )


def psnr_covered(frame: Tensor, truth: Tensor, covered: Tensor) -> float:
    stride = truth.shape[-1] // covered.shape[-1]
    mask = (
        covered.repeat_interleave(stride, 1).repeat_interleave(stride, 2)[:, None].expand_as(truth)
    )
    return float(-10 * torch.log10((frame - truth)[mask].square().mean()))


def train(
    inputs: Tensor, covered: Tensor, targets: Tensor, *, extra: bool, steps: int
) -> nn.Module:
    """Fit the repair to covered cells, as a residual on the latents that were read."""
    torch.manual_seed(0)
    channels = targets.shape[1]
    network = repair_network(channels, 4 if extra else 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    inputs = inputs if extra else inputs[:, : channels + 1]
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (32,), generator=generator)
        x, mask = inputs[batch], covered[batch][:, None].float()
        error = (x[:, :channels] + network(x) - targets[batch]).square() * mask
        optimizer.zero_grad()
        (error.sum() / (mask.sum() * channels)).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def gather(
    clips: list[Path], codec: Codec, count: int, gaps: tuple[int, ...], seed: int
) -> list[Pair]:
    rng = np.random.default_rng(seed)
    pairs = []
    for index in tqdm(range(count), unit='pair', desc='pairs'):
        clip = load_clip(clips[index % len(clips)])
        pairs.append(pairs_of(clip, codec, gap=gaps[index % len(gaps)], rng=rng))
    return pairs


def evaluate(
    codec: Codec,
    training: list[Path],
    held_out: list[Path],
    *,
    pairs: int,
    training_pairs: int,
    steps: int,
) -> dict:
    """Return mean and standard error of covered PSNR, and coverage, by method and gap."""
    fit_on = gather(training, codec, training_pairs, GAPS, seed=1)
    test_on = {gap: gather(held_out, codec, pairs, (gap,), seed=2 + gap) for gap in GAPS}
    with torch.no_grad():
        goal = torch.cat([codec.encode_images(pair.target) for pair in fit_on])
        ceilings = {
            gap: [codec.decode_images(codec.encode_images(p.target)).clamp(0, 1) for p in pairs_at]
            for gap, pairs_at in test_on.items()
        }
    table: dict[str, dict] = {}
    for name, (source, splat_size, extra) in LEARNED.items():
        with torch.no_grad():
            parts = [reproject(pair, codec, source, splat_size) for pair in fit_on]
        inputs, covered = (torch.cat(part) for part in zip(*parts, strict=True))
        network = train(inputs, covered, goal, extra=extra, steps=steps)
        table[name] = {}
        for gap, pairs_at in test_on.items():
            rows: dict[str, list[float]] = {'learned': [], 'raw': [], 'codec': [], 'coverage': []}
            for pair, ceiling in zip(pairs_at, ceilings[gap], strict=True):
                with torch.no_grad():
                    x, cells = reproject(pair, codec, source, splat_size)
                    if not cells.any():
                        continue
                    latents = x[:, : codec.channels]
                    shown = x if extra else x[:, : codec.channels + 1]
                    repaired = codec.decode_images(latents + network(shown)).clamp(0, 1)
                    raw = codec.decode_images(latents).clamp(0, 1)
                rows['learned'].append(psnr_covered(repaired, pair.target, cells))
                rows['raw'].append(psnr_covered(raw, pair.target, cells))
                rows['codec'].append(psnr_covered(ceiling, pair.target, cells))
                rows['coverage'].append(float(cells.float().mean()))
            table[name][str(gap)] = {
                'pairs': len(rows['learned']),
                **{key: float(np.mean(values)) for key, values in rows.items()},
                **{
                    f'{key}_se': float(np.std(values, ddof=1) / np.sqrt(len(values)))
                    for key, values in rows.items()
                },
            }
        print(name, {gap: round(f['learned'], 2) for gap, f in table[name].items()}, flush=True)
    return table


def to_markdown(table: dict) -> str:
    lines = ['| method | ' + ' | '.join(f'gap {gap}' for gap in GAPS) + ' |']
    lines.append('|---|' + '---|' * len(GAPS))
    for name, by_gap in table.items():
        cells = [
            f'{f["learned"]:.1f} ± {f["learned_se"]:.1f} dB, {f["coverage"]:.0%} '
            f'(raw {f["raw"]:.1f}, codec {f["codec"]:.1f})'
            for f in by_gap.values()
        ]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def main(config: ReprojectionConfig) -> int:
    """Measure, write and print the table; return the exit status."""
    table = evaluate(
        Codec.from_folder(config.codec or EMBEDDED / 'vae'),
        sorted((config.clips / 'train').glob('*.safetensors')),
        sorted((config.clips / config.held_out).glob('*.safetensors')),
        pairs=config.pairs,
        training_pairs=config.training_pairs,
        steps=config.steps,
    )
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.out, table)
    print(to_markdown(table))
    return 0
