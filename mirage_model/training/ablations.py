"""Ablations of the world model, each a few fields of its configuration.

All variants start from one backbone and take the same number of steps. They are compared by
rollouts over the validation clips, in which labels replace perception: depth has the noise of the
variant alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
import json
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras
from mirage_model.clip import Clip, labels, load_clip
from mirage_model.data.latents import describe_latents, load_latents
from mirage_model.evaluation.rollout_quality import imagine
from mirage_model.io import begin_run, fingerprint, write_json
from mirage_model.memory import Readout
from mirage_model.memory.latent import MemoryConfig
from mirage_model.memory.registry import create_memory
from mirage_model.metrics import psnr
from mirage_model.model.checkpoint import Model, ModelConfig
from mirage_model.model.codec import Codec
from mirage_model.model.sampler import tiny_scheduler
from mirage_model.perception import Estimate
from mirage_model.training.config import (
    AblationConfig,
    AblationsCommand,
    ContextConfig,
    Stage,
    TrainerConfig,
    WorldModelConfig,
)
from mirage_model.training.simulated_memory import over_pixels, readout_of
from mirage_model.training.stages import TRAINED, WorldModel, build, read_architecture, start_from
from mirage_model.training.trainer import (
    checkpoints,
    fit,
    processes,
)
from mirage_model.training.world_model import WorldModelObjective


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Fields that differ from the defaults, and the stages that share the steps."""

    label: str
    world_model: dict[str, Any] = field(default_factory=dict)
    """Fields of `WorldModelConfig`."""
    context: dict[str, Any] = field(default_factory=dict)
    """Fields of `ContextConfig`."""
    stages: tuple[Stage, ...] = ('side_branch', 'adapter')


VARIANTS = {
    'full': Ablation(label='full'),
    'rgb_cloud': Ablation(label='RGB point cloud', world_model={'memory': 'rgb_cloud'}),
    'lifted': Ablation(
        label='features upsampled, lifted at pixel resolution',
        world_model={'memory': 'lifted_features'},
    ),
    'no_filter': Ablation(label='no dynamic filter', world_model={'dynamic_filter': False}),
    'one_stage': Ablation(label='one stage', stages=('joint',)),
    'no_memory': Ablation(label='no memory', world_model={'memory': 'none'}),
    'depth_5': Ablation(label='depth with 5% noise', context={'sensor': 0.05}),
    'depth_15': Ablation(label='depth with 15% noise', context={'sensor': 0.15}),
}

COLUMNS = {
    'psnr_db': 'all frames',
    'covered_psnr_db': 'visible in the seed frame',
    'last_chunk_psnr_db': 'last chunk',
    'closed_loop_psnr_db': 'closed loop',
}


class LabelPerception:
    """Perception that returns the labels of a clip."""

    segments_dynamic = True
    estimates_cameras = False

    def __init__(self, estimate: Estimate):
        self._estimate = estimate

    def to(self, device: torch.device | str) -> None:
        """Do nothing: labels follow the frames' device."""

    def estimate(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, readout: Readout | None = None
    ) -> Estimate:
        labelled, device = self._estimate, frames.device
        at = torch.searchsorted(
            labelled.cameras.times.contiguous(), cameras.times.cpu().contiguous()
        )
        parts = {
            name: getattr(labelled, name)[at].to(device)
            for name in ('depth', 'confidence', 'sky', 'moving', 'moving_probability', 'scaled')
        }
        return Estimate(cameras=cameras, **parts)


def with_variant_labels(clip: Clip, config: WorldModelConfig, codec: Codec, *, seed: int) -> Clip:
    """Return the clip with the depth noise of a variant, and without dynamic objects if it has no
    filter."""
    estimate = labels(clip, slice(None), dynamic_filter=config.dynamic_filter)
    n, height, width = estimate.depth.shape
    cells = (n, height // codec.spatial_stride, width // codec.spatial_stride)
    noise = torch.from_numpy(np.random.default_rng(seed).normal(0, config.context.sensor, cells))
    depth = estimate.depth * over_pixels(noise.exp().float(), estimate.depth)
    return replace(clip, depth=depth, moving=estimate.moving)


def visible_in_first_frame(clip: Clip, codec: Codec) -> Bool[Tensor, 'n H W']:
    """Return pixels of all frames but the first whose cell the first frame covers, by the exact
    labels."""
    readout = readout_of(clip, 0, cell=codec.spatial_stride)
    return over_pixels(readout.visible[1:], clip.depth[1:])


@torch.no_grad()
def measure(
    trained: WorldModel,
    config: WorldModelConfig,
    codec: Codec,
    clip: Clip,
    *,
    chunk: int,
    seed: int,
) -> dict[str, float]:
    """Return PSNR of one rollout from the clip's first frame, in chunks of ``chunk`` frames."""
    clip = _shortened(clip, (len(clip.frames) - 1) // (chunk - 1) * (chunk - 1) + 1)
    labelled = with_variant_labels(clip, config, codec, seed=seed)
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
            references=config.references,
            preceding=config.preceding,
        ),
        codec=codec,
        backbone=trained.backbone,
        scheduler=type(scheduler).from_config(scheduler.config, flow_shift=config.shift),
        text=trained.text,
        perception=LabelPerception(labels(labelled, slice(None))),
        sha256='',
    )
    memory = create_memory(
        config.memory, MemoryConfig(channels=codec.channels, splat_size=config.splat_size), codec
    )
    frames = imagine(model, labelled, memory, seed=seed).frames
    truth = clip.frames[1:].permute(0, 3, 1, 2).float() / 255
    metrics = {
        'psnr_db': psnr(frames, truth),
        'covered_psnr_db': psnr(frames, truth, visible_in_first_frame(clip, codec)),
        'last_chunk_psnr_db': psnr(frames[1 - chunk :], truth[1 - chunk :]),
    }
    if 'out_and_back' in clip.name:
        metrics['closed_loop_psnr_db'] = psnr(frames[-1:], truth[-1:])
    return metrics


def _shortened(clip: Clip, count: int) -> Clip:
    parts = ('frames', 'cameras', 'depth', 'sky', 'moving')
    return replace(clip, **{name: getattr(clip, name)[:count] for name in parts})


@dataclass(frozen=True, kw_only=True)
class Data:
    """Folders of latents and clips with train/ and validation/, codec, and checkpoint of the
    backbone."""

    latents: Path
    clips: Path
    codec: Codec
    backbone: Path
    digests: dict[str, str]
    """Digests of `describe_latents`."""


def run_variant(
    variant: Ablation, config: AblationConfig, data: Data, run: Path, *, seed: int
) -> dict[str, float]:
    """Train the stages of a variant and measure it; finished parts are kept."""
    result = run / 'metrics.json'
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
        architecture = read_architecture(data.backbone, model_config)
        model = build(model_config, seed=seed, architecture=architecture)
        # a trained side branch in the checkpoint is not used
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
    metrics = [
        measure(model, model_config, data.codec, load_clip(path), chunk=chunk, seed=number)
        for number, path in enumerate(paths)
    ]
    means = {
        name: float(np.mean([m[name] for m in metrics if name in m]))
        for name in COLUMNS
        if any(name in m for m in metrics)
    }
    write_json(result, means)
    return means


def summarise(results: dict[str, list[dict[str, float]]]) -> dict[str, dict]:
    """Return mean, standard error and values of the seeds by variant and metric.

    The standard error of a single seed is None.
    """
    summary: dict[str, dict] = {}
    for variant, seeds in results.items():
        summary[variant] = {}
        for name in seeds[0]:
            values = [metrics[name] for metrics in seeds]
            n = len(values)
            error = float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None
            summary[variant][name] = {'mean': float(np.mean(values)), 'se': error, 'seeds': values}
    return summary


def to_markdown(summary: dict[str, dict]) -> str:
    """Return a table of PSNR [dB], mean and standard error over the seeds."""
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


def run_all(
    names: Sequence[str], config: AblationConfig, data: Data, out: Path
) -> dict[str, dict]:
    """Run variants with all seeds; write the table of finished ones after each.

    Raises:
        ValueError: ``out`` holds ablations of another configuration.
    """
    out.mkdir(parents=True, exist_ok=True)
    described = {**asdict(config), **data.digests, 'backbone': fingerprint(data.backbone)}
    # more seeds may be added to finished ones
    begin_run(out / 'config.json', described, may_differ=('seeds',))
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(config.seeds):
        for name in names:
            run = out / name / f'seed-{seed}'
            metrics = run_variant(VARIANTS[name], config, data, run, seed=seed)
            results.setdefault(name, []).append(metrics)
            summary = summarise(results)
            written = {'config': described, 'variants': summary}
            write_json(out / 'ablations.json', written)
            (out / 'ablations.md').write_text(to_markdown(summary))
    return summary


def main(config: AblationsCommand) -> int:
    """Run the ablations, and print their table."""
    data = Data(
        latents=config.latents,
        clips=config.clips,
        codec=Codec.from_folder(config.codec, device=str(processes().device)),
        backbone=config.start,
        digests=describe_latents(config.latents, config.codec),
    )
    print(to_markdown(run_all(config.only or tuple(VARIANTS), config.ablations, data, config.out)))
    return 0
