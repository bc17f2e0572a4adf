"""What a training takes, before anything is rented: parameters, memory of a GPU, bytes of a checkpoint.

The model is built on the meta device, so that 5 B parameters need no memory here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mirage_model.training.model import TRAINED, WorldModel, WorldModelConfig, begin_stage, build

GPUS = (1, 8, 32)
CHUNK = {'tiny': (5, 12, 20), 'wan22_5b': (9, 44, 80)}
"""Latent frames, rows and columns of the chunk that each size is trained on."""

FORMULA = """\
Every GPU holds, in bytes, with P parameters in all and t of them trained, on N GPUs:
  parameters   4 P / N                float32
  gradients    4 t / N                float32
  moments      8 t / N                AdamW's two, float32
  gathered     2 (3 B + R)            bfloat16: the block at work, the next one and a block's gradients, B
                                      parameters each, and the R outside all blocks; on one GPU 2 t, the
                                      copies that autocast keeps
  activations  T (2 D (L + S)         bfloat16: the input of each of the L blocks and of the S side blocks
                  + 100 D + 4 F       what autograd saves in one block, which is computed anew
                  + 46 D)             what it saves outside the blocks, the times of all tokens among it
               with T tokens of width D and F hidden units; without gradient checkpointing
               T ((100 D + 4 F) (L + S) + 46 D)
The codec, which validation needs, and what the allocator wastes come on top. Processes of one machine load
4 P bytes each into its memory before they are sharded.
"""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one stage takes. Parameters are counts, the rest is bytes."""

    parameters: int
    trained: int
    tensors: int
    block: int
    activations: int

    @property
    def checkpoint(self) -> int:
        """float32 weights, two moments and a count of steps for each tensor that is trained."""
        return 4 * self.parameters + 8 * self.trained + 4 * self.tensors

    def per_gpu(self, gpus: int, *, outside: int) -> dict[str, float]:
        gathered = 2 * self.trained if gpus == 1 else 2 * (3 * self.block + outside)
        return {
            'parameters': 4 * self.parameters / gpus,
            'gradients': 4 * self.trained / gpus,
            'moments': 8 * self.trained / gpus,
            'gathered': gathered,
            'activations': self.activations,
        }


def needs(model: WorldModel, config: WorldModelConfig) -> Needs:
    """Of a model that has begun its stage."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return Needs(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in trained),
        tensors=len(trained),
        block=sum(p.numel() for p in model.backbone.wan.blocks[0].parameters()),
        activations=activation_bytes(model, config, CHUNK[config.size]),
    )


def activation_bytes(
    model: WorldModel, config: WorldModelConfig, chunk: tuple[int, int, int]
) -> int:
    """By the formula in `FORMULA`, for bfloat16: an upper bound where the backbone is frozen."""
    wan = model.backbone.wan.config
    frames, rows, columns = chunk
    _, p_h, p_w = wan.patch_size
    tokens = config.batch * frames * (rows // p_h) * (columns // p_w)
    width = wan.num_attention_heads * wan.attention_head_dim
    blocks = wan.num_layers + len(model.backbone.side_branch.blocks)
    inside = 100 * width + 4 * wan.ffn_dim
    if config.gradient_checkpointing:
        return tokens * (2 * width * blocks + inside + 46 * width)
    return tokens * (inside * blocks + 46 * width)


def report(config: WorldModelConfig) -> str:
    """A table over all stages and numbers of GPUs, and where its figures come from."""
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
    for stage in TRAINED:
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
    return '\n'.join([*lines, *rows, '', FORMULA])
