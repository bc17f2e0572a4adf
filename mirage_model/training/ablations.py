"""Ablations of the world model, each a few lines of configuration: ``python -m mirage_model.training.ablations``

All start from one backbone, take the same number of steps, and are judged by rollouts over the validation
clips. There the labels stand in for perception, so that depth is as noisy as the variant says and no noisier.
What was finished is kept: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field, replace
import json
from pathlib import Path

from jaxtyping import Bool, Float
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras
from mirage_model.clip import Clip, load_clip
from mirage_model.data.latents import describe_latents, load_latents
from mirage_model.evaluation.rollout_quality import imagine
from mirage_model.io import begin_run, fingerprint, write_json
from mirage_model.labels import labels
from mirage_model.memory import Readout
from mirage_model.memory.latent import MemoryConfig
from mirage_model.memory.registry import create_memory
from mirage_model.metrics import psnr
from mirage_model.model.checkpoint import Model, ModelConfig
from mirage_model.model.codec import Codec
from mirage_model.model.sampler import tiny_scheduler
from mirage_model.perception import Estimate
from mirage_model.training.context import ContextConfig, over_pixels, readout_of
from mirage_model.training.model import TRAINED, WorldModel, WorldModelConfig, build, start_from
from mirage_model.training.trainer import (
    TrainerConfig,
    checkpoints,
    fit,
    processes,
)
from mirage_model.training.world_model import WorldModelObjective


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Fields of `WorldModelConfig` and of its context that differ, and the stages that share the steps."""

    label: str
    world_model: dict = field(default_factory=dict)
    context: dict = field(default_factory=dict)
    stages: tuple[str, ...] = ('side_branch', 'adapter')


VARIANTS = {
    'full': Variant(label='full'),
    'rgb_cloud': Variant(label='RGB point cloud', world_model={'memory': 'rgb_cloud'}),
    'lifted': Variant(
        label='features upsampled, lifted at pixel resolution',
        world_model={'memory': 'lifted_features'},
    ),
    'no_filter': Variant(label='no dynamic filter', world_model={'dynamic_filter': False}),
    'one_stage': Variant(label='one stage', stages=('joint',)),
    'no_memory': Variant(label='no memory', world_model={'memory': 'none'}),
    'depth_5': Variant(label='depth with 5% noise', context={'sensor': 0.05}),
    'depth_15': Variant(label='depth with 15% noise', context={'sensor': 0.15}),
}

COLUMNS = {
    'psnr_db': 'all frames',
    'covered_psnr_db': 'where the seed frame sees',
    'last_chunk_psnr_db': 'last chunk',
    'closed_loop_psnr_db': 'closed loop',
}


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """``steps`` is the budget of one variant with one seed, over all its stages.

    From a quarter of each stage on, contexts are imagined too. ``clips`` of the validation split are judged.
    """

    steps: int = 600
    seeds: int = 2
    batch: int = 4
    precision: str = 'no'
    clips: int = 8
    sampler_steps: int = 4
    learning_rate: float = 1e-3


class Known:
    """`Perception` that knows what a clip's labels say."""

    def __init__(self, estimate: Estimate):
        self._estimate = estimate

    def to(self, device: torch.device | str) -> None:
        """Labels stay where they are."""

    def estimate(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, readout: Readout | None = None
    ) -> Estimate:
        known, device = self._estimate, frames.device
        at = torch.searchsorted(known.cameras.times.contiguous(), cameras.times.cpu().contiguous())
        parts = {
            name: getattr(known, name)[at].to(device)
            for name in ('depth', 'confidence', 'sky', 'moving', 'scaled')
        }
        return Estimate(cameras=cameras, **parts)


def as_seen(clip: Clip, config: WorldModelConfig, codec: Codec, *, seed: int) -> Clip:
    """The clip with the depth and the movers that a variant knows of: noise by latent cell, or no filter."""
    known = labels(clip, slice(None), dynamic_filter=config.dynamic_filter)
    n, height, width = known.depth.shape
    cells = (n, height // codec.spatial_stride, width // codec.spatial_stride)
    noise = torch.from_numpy(np.random.default_rng(seed).normal(0, config.context.sensor, cells))
    depth = known.depth * over_pixels(noise.exp().float(), known.depth)
    return replace(clip, depth=depth, moving=known.moving)


def seen_from_the_start(clip: Clip, codec: Codec) -> Bool[Tensor, 'n H W']:
    """Pixels of all frames but the first whose cell shows what the first frame saw, by the exact labels."""
    readout = readout_of(clip, 0, cell=codec.spatial_stride)
    return over_pixels(readout.visible[1:], clip.depth[1:])


@torch.no_grad()
def judge(
    trained: WorldModel,
    config: WorldModelConfig,
    codec: Codec,
    clip: Clip,
    *,
    chunk: int,
    seed: int,
) -> dict[str, float]:
    """Figures of one rollout from the clip's first frame; ``chunk`` counts its frames."""
    clip = _shortened(clip, (len(clip.frames) - 1) // (chunk - 1) * (chunk - 1) + 1)
    seen = as_seen(clip, config, codec, seed=seed)
    scheduler = tiny_scheduler()
    model = Model(
        config=ModelConfig(
            name='ablation',
            height=clip.cameras.height,
            width=clip.cameras.width,
            chunk_frames=chunk,
            frame_rate=float(1 / clip.cameras.times.diff().mean()),
            steps=config.sampler_steps,
            splat_size=config.splat_size,
            memory=config.memory,
        ),
        codec=codec,
        backbone=trained.backbone,
        scheduler=type(scheduler).from_config(scheduler.config, flow_shift=config.shift),
        text=trained.text,
        perception=Known(labels(seen, slice(None))),
        sha256='',
    )
    memory = create_memory(
        config.memory, MemoryConfig(channels=codec.channels, splat_size=config.splat_size), codec
    )
    frames = imagine(model, seen, memory, seed=seed).frames
    truth = clip.frames[1:].permute(0, 3, 1, 2).float() / 255
    figures = {
        'psnr_db': psnr(frames, truth),
        'covered_psnr_db': psnr(frames, truth, seen_from_the_start(clip, codec)),
        'last_chunk_psnr_db': psnr(frames[1 - chunk :], truth[1 - chunk :]),
    }
    if 'out_and_back' in clip.name:
        figures['closed_loop_psnr_db'] = psnr(frames[-1:], truth[-1:])
    return figures


def _shortened(clip: Clip, count: int) -> Clip:
    parts = ('frames', 'cameras', 'depth', 'sky', 'moving')
    return replace(clip, **{name: getattr(clip, name)[:count] for name in parts})


@dataclass(frozen=True, kw_only=True)
class Data:
    """Folders with train/ and validation/ of latents and clips, the codec, and the backbone's checkpoint.

    ``identity`` says what samples follow from, as `mirage_model.data.latents.describe_latents` does.
    """

    latents: Path
    clips: Path
    codec: Codec
    backbone: Path
    identity: dict[str, str]


def run_variant(
    variant: Variant, config: AblationConfig, data: Data, run: Path, *, seed: int
) -> dict[str, float]:
    """Train a variant, stage after stage, and judge it; what is done already is not done again."""
    result = run / 'figures.json'
    if result.exists():
        return json.loads(result.read_text())
    start = data.backbone
    for index, stage in enumerate(variant.stages):
        share = len(variant.stages)
        steps = config.steps * (index + 1) // share - config.steps * index // share
        model_config = WorldModelConfig(
            stage=stage,
            batch=config.batch,
            sampler_steps=config.sampler_steps,
            validation_clips=2,
            context=ContextConfig(imagined_from=steps // 4, **variant.context),
            **variant.world_model,
        )
        model = build(model_config, seed=seed)
        # the first stage's side branch begins as it was made, whatever the checkpoint's has learned
        words = TRAINED['backbone'] if index == 0 else ('',)
        start_from(model, start, words=words)
        objective = WorldModelObjective(model, model_config, data.latents, data.clips, data.codec)
        trainer = TrainerConfig(
            steps=steps,
            seed=seed,
            learning_rate=config.learning_rate,
            warmup_steps=min(100, steps // 4),
            precision=config.precision,
            validate_every=steps,
            checkpoint_every=100,
        )
        fit(objective, trainer, run / stage, full_config={'world_model': asdict(model_config)})
        start = checkpoints(run / stage)[-1]
    model.eval()
    latent_frames = load_latents(objective.validation[0])[0]['video'].shape[2]
    chunk = (latent_frames - 1) * data.codec.temporal_stride + 1
    paths = sorted((data.clips / 'validation').glob('*.safetensors'))[: config.clips]
    figures = [
        judge(model, model_config, data.codec, load_clip(path), chunk=chunk, seed=number)
        for number, path in enumerate(paths)
    ]
    means = {
        name: float(np.mean([f[name] for f in figures if name in f]))
        for name in COLUMNS
        if any(name in f for f in figures)
    }
    write_json(result, means)
    return means


def summarise(results: dict[str, list[dict[str, float]]]) -> dict[str, dict]:
    """For every variant and figure the mean over seeds, its standard error, and the seeds' own values.

    The error of a single seed is not known: None.
    """
    summary: dict[str, dict] = {}
    for variant, seeds in results.items():
        summary[variant] = {}
        for name in seeds[0]:
            values = [figures[name] for figures in seeds]
            n = len(values)
            error = float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None
            summary[variant][name] = {'mean': float(np.mean(values)), 'se': error, 'seeds': values}
    return summary


def to_markdown(summary: dict[str, dict]) -> str:
    """PSNR in dB, mean and standard error over the seeds."""
    names = [name for name in COLUMNS if any(name in row for row in summary.values())]
    lines = [
        '| PSNR, dB | ' + ' | '.join(COLUMNS[name] for name in names) + ' |',
        '|---|' + '---|' * len(names),
    ]
    for variant, row in summary.items():
        cells = [
            f'{row[name]["mean"]:.2f}'
            + ('' if row[name]['se'] is None else f' ± {row[name]["se"]:.2f}')
            for name in names
        ]
        lines.append(f'| {VARIANTS[variant].label} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def run_all(names: list[str], config: AblationConfig, data: Data, out: Path) -> dict[str, dict]:
    """Every variant with every seed, and the table of those that are finished, after each of them.

    Raises ValueError where ``out`` holds ablations of another configuration.
    """
    out.mkdir(parents=True, exist_ok=True)
    described = {**asdict(config), **data.identity, 'backbone': fingerprint(data.backbone)}
    # more seeds may be added to finished ones
    begin_run(out / 'config.json', described, may_differ=('seeds',))
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(config.seeds):
        for name in names:
            run = out / name / f'seed-{seed}'
            figures = run_variant(VARIANTS[name], config, data, run, seed=seed)
            results.setdefault(name, []).append(figures)
            summary = summarise(results)
            written = {'config': described, 'variants': summary}
            write_json(out / 'ablations.json', written)
            (out / 'ablations.md').write_text(to_markdown(summary))
    return summary


def main() -> None:
    defaults = AblationConfig()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--latents', required=True, type=Path)
    parser.add_argument('--clips', required=True, type=Path)
    parser.add_argument('--codec', required=True, type=Path)
    parser.add_argument(
        '--from',
        dest='start',
        required=True,
        type=Path,
        help='checkpoint of stage backbone, or model folder',
    )
    parser.add_argument('--out', required=True, type=Path)
    parser.add_argument('--only', choices=tuple(VARIANTS), action='append', help='default: all')
    parser.add_argument('--steps', type=int, default=defaults.steps, help='of each, all stages')
    parser.add_argument('--seeds', type=int, default=defaults.seeds)
    parser.add_argument('--batch', type=int, default=defaults.batch)
    parser.add_argument('--precision', choices=('no', 'bf16'), default=defaults.precision)
    parser.add_argument('--judge', type=int, default=defaults.clips, help='validation clips')
    arguments = parser.parse_args()
    config = AblationConfig(
        steps=arguments.steps,
        seeds=arguments.seeds,
        batch=arguments.batch,
        precision=arguments.precision,
        clips=arguments.judge,
    )
    data = Data(
        latents=arguments.latents,
        clips=arguments.clips,
        codec=Codec.from_folder(arguments.codec, device=str(processes().device)),
        backbone=arguments.start,
        identity=describe_latents(arguments.latents, arguments.codec),
    )
    print(to_markdown(run_all(arguments.only or list(VARIANTS), config, data, arguments.out)))


if __name__ == '__main__':
    main()
