"""Ways of diffusers and PyTorch to run the backbone faster or in less memory of the device."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
import torch

from mirage_model.model.backbone import Backbone

KEPT_PRECISE = ('patch_embedding', 'condition_embedder', 'norm', 'side_branch.embedding', 'head')
"""Parts of the names of layers that float8 leaves alone: those that `WanTransformer3DModel`
names, and their counterparts in the side branch."""


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """Ways to run the backbone; without any it is plain PyTorch."""

    compile: bool = False
    """Compile the blocks: minutes at the first request, then faster steps."""

    offload: bool = False
    """Keep the weights in RAM and copy those of each layer to the device while it computes."""

    float8: bool = False
    """Store weights in 8 bits and compute in the model's type: half the memory of bfloat16."""

    def __post_init__(self) -> None:
        if self.compile and self.offload:
            raise ValueError('offload: true is not allowed with compile, choose one of them')


def accelerate(
    backbone: Backbone, settings: Acceleration, *, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Prepare a backbone in place and move it to the device, unless its weights are offloaded.

    Args:
        dtype: Type of the computation.
    """
    if settings.float8:
        apply_layerwise_casting(
            backbone,
            storage_dtype=torch.float8_e4m3fn,
            compute_dtype=dtype,
            skip_modules_pattern=KEPT_PRECISE,
        )
    if settings.offload:
        # leaf by leaf, because `Backbone.forward` calls the parts of the transformer themselves
        apply_group_offloading(
            backbone,
            onload_device=torch.device(device),
            offload_type='leaf_level',
            use_stream=torch.device(device).type == 'cuda',
        )
        table = backbone.wan.scale_shift_table
        table.data = table.data.to(device)
        return
    backbone.to(device)
    if settings.compile:
        compile_blocks(backbone)


def compile_blocks(backbone: Backbone) -> None:
    """Compile blocks and head in place when they first run; repeated blocks share their code."""
    side_branch = backbone.side_branch
    for part in (*backbone.wan.blocks, *side_branch.blocks, side_branch.head):
        if part is not None:
            part.compile(dynamic=False)
