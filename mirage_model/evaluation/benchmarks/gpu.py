"""Time and memory of a chunk on one GPU: real sizes, random weights, and each option on and off.

``mirage bench gpu`` builds the networks on the device, rolls out along a straight path through an
empty scene, and writes JSON. Random weights take the time of trained ones, but their frames mean
nothing. Variants that the time limit leaves no room for are listed as not run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
import time
from typing import Any

from diffusers import WanTransformer3DModel
import torch

from mirage_model.camera import Cameras
from mirage_model.evaluation.config import GpuBenchConfig, GpuVariant
from mirage_model.io import as_json, write_json
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.acceleration import Acceleration, accelerate
from mirage_model.model.backbone import SIDE_BRANCHES, TINY, WAN22_5B, Backbone
from mirage_model.model.checkpoint import Model, ModelConfig
from mirage_model.model.codec import WAN22_VAE, Codec
from mirage_model.model.rollout import rollout
from mirage_model.model.sampler import tiny_scheduler
from mirage_model.model.side_branch import SideBranch
from mirage_model.model.text import TOKENS, TextCondition
from mirage_model.perception.embedded import EmbeddedPerception, Network, NetworkConfig
from mirage_model.training.codec import TINY_VAE

STAGES = ('read', 'denoise', 'decode', 'write')


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """One way to run the model."""

    acceleration: Acceleration = Acceleration()
    steps: int | None = None
    """Denoising steps; None takes those of the size."""
    guidance: float = 1.0
    tiling: bool = False
    """Decode in tiles."""


VARIANTS: dict[GpuVariant, RunOptions] = {
    'plain': RunOptions(),
    'few_steps': RunOptions(steps=2),
    'compile': RunOptions(acceleration=Acceleration(compile=True)),
    'float8': RunOptions(acceleration=Acceleration(float8=True)),
    'tiling': RunOptions(tiling=True),
    'guidance': RunOptions(guidance=5.0),
    'offload': RunOptions(acceleration=Acceleration(offload=True)),
    'compile_float8_few_steps': RunOptions(
        acceleration=Acceleration(compile=True, float8=True), steps=2
    ),
}
"""The variants in the order in which they are run."""

SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], ModelConfig]] = {
    'tiny': (
        TINY,
        TINY_VAE,
        ModelConfig(
            name='tiny',
            height=32,
            width=48,
            chunk_frames=3,
            frame_rate=8.0,
            steps=4,
            splat_size=3,
        ),
    ),
    'wan22_5b': (
        WAN22_5B,
        WAN22_VAE,
        ModelConfig(
            name='wan22_5b',
            height=704,
            width=1280,
            chunk_frames=33,
            frame_rate=24.0,
            steps=20,
            splat_size=3,
        ),
    ),
}
"""Arguments of the transformer and of the VAE, and the configuration of the model, by size."""


def random_model(size: str, acceleration: Acceleration, *, device: str) -> Model:
    """Return a model of random weights, bfloat16 on a GPU."""
    transformer, vae, config = SIZES[size]
    dtype = torch.bfloat16 if device.startswith('cuda') else torch.float32
    built_on = 'cpu' if acceleration.offload else device
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(built_on):
            wan = WanTransformer3DModel(**transformer)
            backbone = Backbone(wan, SideBranch(wan, SIDE_BRANCHES[size]))
    finally:
        torch.set_default_dtype(before)
    backbone.eval().requires_grad_(False)
    accelerate(backbone, acceleration, device=device, dtype=dtype)
    # an untrained network must not classify all pixels as sky or dynamic objects
    network = Network(NetworkConfig(sky_threshold=1.0, moving_threshold=1.0))
    perception = EmbeddedPerception(network)
    perception.to(device)
    return Model(
        config=config,
        codec=Codec.untrained(vae, device=device),
        backbone=backbone,
        scheduler=tiny_scheduler(),
        text=torch.zeros(TOKENS, transformer['text_dim'], device=device, dtype=dtype),
        perception=perception,
        sha256='',
        acceleration=acceleration,
    )


def straight_cameras(config: ModelConfig, frames: int, *, device: str) -> Cameras:
    """Return the cameras of a straight path, a centimetre from frame to frame."""
    K = torch.tensor([[config.width / 2, 0, (config.width - 1) / 2], [0, config.width / 2, 0]])
    K = torch.cat([K, torch.tensor([[0.0, 0.0, 1.0]])])
    K[1, 2] = (config.height - 1) / 2
    world_from_camera = torch.eye(4).repeat(frames, 1, 1)
    world_from_camera[:, 2, 3] = 0.01 * torch.arange(frames)
    cameras = Cameras(
        K=K.expand(frames, 3, 3),
        world_from_camera=world_from_camera,
        times=torch.arange(frames, dtype=torch.float64) / config.frame_rate,
        height=config.height,
        width=config.width,
    )
    return cameras.to(torch.device(device))


def measure(size: str, variant: RunOptions, *, device: str, chunks: int) -> dict[str, Any]:
    """Return times of the first chunk and means of the others [s], and the largest memory.

    Args:
        chunks: Chunks after the first, which alone compiles and fills caches.
    """
    gpu = device.startswith('cuda')
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    model = random_model(size, variant.acceleration, device=device)
    if variant.tiling:
        model.codec.vae.enable_tiling()
    loaded = time.perf_counter() - began
    text = TextCondition(text=model.text)
    if variant.guidance != 1:
        text = replace(text, negative=model.text, guidance=variant.guidance)
    steps = variant.steps or model.config.steps
    frames = (chunks + 1) * model.new_frames
    cameras = straight_cameras(model.config, frames + 1, device=device)
    config = model.config
    generated = rollout(
        model,
        LatentMemory(MemoryConfig(channels=model.codec.channels, splat_size=config.splat_size)),
        torch.rand(1, 3, config.height, config.width, device=device),
        cameras[:1],
        cameras[1:],
        steps=steps,
        text=text,
        generator=torch.Generator().manual_seed(0),
    )
    began, rows = time.perf_counter(), []
    for chunk in generated:
        rows.append(dict(chunk.stages))
        if len(rows) == 1:
            first = time.perf_counter() - began
    stages = {name: sum(row[name] for row in rows[1:]) / chunks for name in STAGES}
    seconds = sum(stages.values())
    return {
        'steps': steps,
        'load_s': loaded,
        'first_chunk_s': first,
        'chunk_s': seconds,
        'stages_s': stages,
        'step_s': stages['denoise'] / steps,
        'frames_per_second': model.new_frames / seconds,
        'peak_bytes': torch.cuda.max_memory_allocated(device) if gpu else None,
    }


def main(config: GpuBenchConfig) -> int:
    """Measure the variants until the time is up; write and print the result."""
    began, longest = time.monotonic(), 0.0
    variants: dict[str, dict[str, Any]] = {}
    for name in config.only or VARIANTS:
        started = time.monotonic()
        left = config.seconds - (started - began)
        if left < longest:
            variants[name] = {'not_run': f'{left:.0f} s were left, {longest:.0f} s are needed'}
            continue
        try:
            variants[name] = measure(
                config.size, VARIANTS[name], device=config.device, chunks=config.chunks
            )
        except torch.OutOfMemoryError as error:
            variants[name] = {'not_run': f'out of memory: {error}'}
        longest = max(longest, time.monotonic() - started)
        print(name, as_json(variants[name], indent=None), flush=True)
    gpu = config.device.startswith('cuda')
    write_json(
        config.out,
        {
            'size': config.size,
            'weights': 'random',
            'device': torch.cuda.get_device_name(config.device) if gpu else config.device,
            'torch': torch.__version__,
            'chunks': config.chunks,
            'new_frames': SIZES[config.size][2].chunk_frames - 1,
            'seconds': time.monotonic() - began,
            'variants': variants,
        },
    )
    print(f'wrote {config.out}')
    return 0
