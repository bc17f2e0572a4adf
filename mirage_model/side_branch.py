"""The side branch: parallel blocks that carry a memory's readout and the camera's rays into the backbone.

In the manner of ControlNet and of VACE: copies of the backbone's block, joined through projections that
start at zero, so that an untrained branch changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from jaxtyping import Float
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mirage_model.memory import Readout

EXTRA_CHANNELS = 11
"""Beside the latents: visible, observed, offset (2), depth ratio, ray direction (3) and origin (3)."""


@dataclass(frozen=True, kw_only=True)
class SideBranchConfig:
    """``layers`` are the backbone's layers after which a block of the branch adds its output.

    ``shortcut`` is the width of three convolutions over cells that add to the backbone's velocity,
    for a backbone too narrow to carry what the memory shows beside all else; 0 is none.
    """

    layers: tuple[int, ...]
    shortcut: int = 0


def side_input(readout: Readout, rays: Float[Tensor, 'b k 6 h w']) -> Float[Tensor, 'b c k h w']:
    """What the branch sees at every cell of every latent frame; ``readout`` has the batch shape (b, k)."""
    channels = [
        readout.latents,
        readout.visible[:, :, None].float(),
        readout.observed[:, :, None].float(),
        readout.offset,
        readout.depth_ratio[:, :, None],
        rays,
    ]
    return torch.cat(channels, dim=2).movedim(2, 1)


class SideBranch(nn.Module):
    """``backbone`` gives the sizes only: nothing of it is shared or kept."""

    def __init__(self, backbone: WanTransformer3DModel, config: SideBranchConfig):
        super().__init__()
        c = backbone.config
        fits = all(0 <= layer < c.num_layers for layer in config.layers)
        if not config.layers or not fits or len(set(config.layers)) < len(config.layers):
            raise ValueError(
                f'side branch layers {config.layers} do not fit {c.num_layers} layers'
            )
        self.config = config
        self.gradient_checkpointing = False
        dim = c.num_attention_heads * c.attention_head_dim
        self.embedding = nn.Conv3d(
            c.in_channels + EXTRA_CHANNELS, dim, kernel_size=c.patch_size, stride=c.patch_size
        )
        self.proj_in = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(
            WanTransformerBlock(
                dim, c.ffn_dim, c.num_attention_heads, c.qk_norm, c.cross_attn_norm, c.eps
            )
            for _ in config.layers
        )
        self.proj_out = nn.ModuleList(nn.Linear(dim, dim) for _ in config.layers)
        for projection in self.proj_out:
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)
        self.shortcut = _shortcut(c.in_channels + EXTRA_CHANNELS, config.shortcut, c.out_channels)

    def forward(
        self,
        side: Float[Tensor, 'b c k h w'],
        hidden: Float[Tensor, 'b tokens dim'],
        text: Float[Tensor, 'b words dim'],
        time: Tensor,
        rotary: tuple[Tensor, Tensor],
    ) -> dict[int, Float[Tensor, 'b tokens dim']]:
        """What to add to the backbone's hidden state after each of the configured layers."""
        state = self.proj_in(self.embedding(side).flatten(2).transpose(1, 2)) + hidden
        added = {}
        for layer, block, projection in zip(
            self.config.layers, self.blocks, self.proj_out, strict=True
        ):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                state = checkpoint(block, state, text, time, rotary, use_reentrant=False)
            else:
                state = block(state, text, time, rotary)
            added[layer] = projection(state)
        return added

    def direct(self, side: Float[Tensor, 'b s k h w']) -> Float[Tensor, 'b c k h w'] | float:
        """What the shortcut adds to the velocity, each latent frame by itself."""
        if self.shortcut is None:
            return 0.0
        b, k = side.shape[0], side.shape[2]
        return self.shortcut(side.movedim(2, 1).flatten(0, 1)).unflatten(0, (b, k)).movedim(2, 1)


def _shortcut(before: int, width: int, after: int) -> nn.Sequential | None:
    """Three convolutions, the last of them zero."""
    if width == 0:
        return None
    last = nn.Conv2d(width, after, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Conv2d(before, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.SiLU(),
        last,
    )
