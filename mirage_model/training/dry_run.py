"""Requirements of a training: parameters, GPU memory, operations and size of checkpoints.

The model is built on the meta device, so that 5 B parameters need no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

from diffusers import AutoencoderKLWan
import torch
from torch.utils.flop_counter import FlopCounterMode

from mirage_model.model.codec import WAN22_VAE
from mirage_model.training.codec import TINY_VAE
from mirage_model.training.config import DryRunConfig, Stage, WorldModelConfig
from mirage_model.training.stages import WorldModel, begin_stage, build
from mirage_model.training.trainer import make_optimizer

GPUS = (1, 8, 32)
CHUNK = {'tiny': (17, 24, 40), 'wan22_5b': (9, 44, 80)}
"""Latent frames, rows and columns of a training chunk of each size."""
VAE: dict[str, dict[str, Any]] = {'tiny': TINY_VAE, 'wan22_5b': WAN22_VAE}

FORMULA = """\
Every GPU holds, in bytes, with P parameters in all and t of them trained, on N GPUs:
  parameters   4 P / N                float32
  gradients    4 t / N                float32
  moments      (4 m + 8 (t - m)) / N  float32: Muon has one for each of the m weights of
                                      matrices, AdamW two for the rest
  gathered     2 (3 B + R)            bfloat16: the block at work, the next one and a block's
                                      gradients, B parameters each, and the R outside all
                                      blocks; on one GPU 2 t, the copies that autocast keeps
  activations  T (2 D (L + S)         bfloat16: the input of each of the L blocks and of the
                                      S side blocks
                  + 100 D + 4 F       autograd's for one block, which is computed again
                  + 46 D)             autograd's outside the blocks, with the times of all
                                      tokens
               with T tokens of width D and F hidden units; without gradient checkpointing
               T ((100 D + 4 F) (L + S) + 46 D); a head of width W saves 4 C + 48 W more for
               each latent cell, with C channels that go into it
A checkpoint is the parameters and the moments, whole. On one GPU autocast saves a seventh
more in a block. The codec, which validation needs, and what the allocator wastes come on
top. Processes of one machine load 4 P bytes each into its memory before they are sharded.
"""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Requirements of one stage. Parameters are counts, the rest is bytes."""

    parameters: int
    trained: int
    moments: int
    block: int
    activations: int

    @property
    def checkpoint(self) -> int:
        return 4 * self.parameters + self.moments

    def per_gpu(self, gpus: int, *, outside: int) -> dict[str, float]:
        gathered = 2 * self.trained if gpus == 1 else 2 * (3 * self.block + outside)
        return {
            'parameters': 4 * self.parameters / gpus,
            'gradients': 4 * self.trained / gpus,
            'moments': self.moments / gpus,
            'gathered': gathered,
            'activations': self.activations,
        }


def needs(model: WorldModel, config: WorldModelConfig) -> Needs:
    """Return the requirements of a model after `begin_stage`."""
    groups = make_optimizer(model, learning_rate=1.0, weight_decay=0.0).param_groups
    return Needs(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for group in groups for p in group['params']),
        moments=sum(
            (4 if group['use_muon'] else 8) * p.numel()
            for group in groups
            for p in group['params']
        ),
        block=sum(p.numel() for p in model.backbone.wan.blocks[0].parameters()),
        activations=activation_bytes(model, config, CHUNK[config.size]),
    )


def activation_bytes(
    model: WorldModel, config: WorldModelConfig, chunk: tuple[int, int, int]
) -> int:
    """Return activations [bytes] by `FORMULA`, for bfloat16; an upper bound if the backbone is
    frozen."""
    wan = model.backbone.wan.config
    frames, rows, columns = chunk
    _, p_h, p_w = wan.patch_size
    tokens = config.batch * frames * (rows // p_h) * (columns // p_w)
    width = wan.num_attention_heads * wan.attention_head_dim
    blocks = wan.num_layers + len(model.backbone.side_branch.blocks)
    inside = 100 * width + 4 * wan.ffn_dim
    side = model.backbone.side_branch
    around = tokens * 46 * width
    if side.head is not None:
        cell = 4 * side.head.proj_in.in_channels + 48 * side.config.head
        around += config.batch * frames * rows * columns * cell
    if config.gradient_checkpointing:
        return tokens * (2 * width * blocks + inside) + around
    return tokens * inside * blocks + around


def operations(config: WorldModelConfig) -> dict[str, float]:
    """Return floating-point operations for one chunk [10^9], counted on the meta device.

    ``recode`` is decoding a chunk and encoding its frames alone, which a rollout needs and
    training avoids.
    """
    frames, rows, columns = CHUNK[config.size]
    arguments = VAE[config.size]
    height, width = (n * arguments['scale_factor_spatial'] for n in (rows, columns))
    with torch.device('meta'):
        model = build(config).requires_grad_(False)
        vae = AutoencoderKLWan(**arguments).requires_grad_(False)
        latents = torch.empty(1, arguments['z_dim'], frames, rows, columns)
        side = torch.empty(1, model.backbone.side_branch.embedding.in_channels, *latents.shape[2:])
        image = torch.empty(1, arguments['in_channels'] // 4, 1, height, width)
        forward = _counted(lambda: model(latents, torch.empty(1, frames), side))
        recode = _counted(lambda: vae.decode(latents))
        recode += (frames - 1) * _counted(lambda: vae.encode(image))
    context = config.context
    return {
        'forward': forward,
        'training': (4 if config.gradient_checkpointing else 3) * forward,
        'imagined': context.imagined * context.imagined_steps * forward,
        'recode': context.imagined * recode,
    }


def _counted(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def report(config: WorldModelConfig) -> str:
    """Return a table over all stages and numbers of GPUs, and its formulas."""
    chunk = ' x '.join(map(str, CHUNK[config.size]))
    checkpointing = 'with' if config.gradient_checkpointing else 'without'
    lines = [
        f'{config.size}: {config.batch} chunk(s) of {chunk} cells on each GPU, '
        f'{checkpointing} gradient checkpointing',
        '',
        f'{"stage":12} {"parameters":>14} {"trained":>14} {"checkpoint":>11}',
    ]
    rows = [
        '',
        'memory per GPU in GB, sharded over all of them by FSDP',
        f'{"stage":12} {"GPUs":>4} {"parameters":>11} {"gradients":>10} {"moments":>8} '
        f'{"gathered":>9} {"activations":>12} {"sum":>7}',
    ]
    for stage in get_args(Stage):
        config = replace(config, stage=stage)
        with torch.device('meta'):
            model = build(config)
            begin_stage(model, config)
        stage_needs = needs(model, config)
        blocks = [*model.backbone.wan.blocks, *model.backbone.side_branch.blocks]
        inside = sum(p.numel() for block in blocks for p in block.parameters())
        lines.append(
            f'{stage:12} {stage_needs.parameters:14,} {stage_needs.trained:14,} '
            f'{stage_needs.checkpoint / 1e9:8.2f} GB'
        )
        for gpus in GPUS:
            parts = stage_needs.per_gpu(gpus, outside=stage_needs.parameters - inside)
            widths = (11, 10, 8, 9, 12)
            columns = ' '.join(f'{v / 1e9:{w}.2f}' for v, w in zip(parts.values(), widths))
            rows.append(f'{stage:12} {gpus:4} {columns} {sum(parts.values()) / 1e9:7.2f}')
    counted = operations(config)
    rows += [
        '',
        f'10^9 operations for a chunk: {counted["forward"]:,.1f} forward, '
        f'{counted["training"]:,.1f} '
        f'in a step of training, and {counted["imagined"]:,.1f} for generated contexts;',
        f'to decode these and encode them again would take {counted["recode"]:,.1f} more',
    ]
    return '\n'.join([*lines, *rows, '', FORMULA])


def main(config: DryRunConfig) -> int:
    """Print what a training of this size takes."""
    print(report(config.world_model))
    return 0
