"""The side branch: parallel blocks that condition the backbone on the memory's readout and camera
rays.

It follows ControlNet and VACE: blocks of the backbone's architecture feed it through projections
that start at zero, so an untrained branch leaves the output unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Literal, TypeAlias, get_args

from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import FrozenDict
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from jaxtyping import Float
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SideInput: TypeAlias = Literal['mirage', 'official', 'spatia']

HEAD_BLOCKS = 3
STATE_CHANNELS = 32
EXTRA_CHANNELS = 11
"""Channels after the latents of input 'mirage': visible, observed, offset (2), depth ratio, ray
direction (3), origin (3)."""


@dataclass(frozen=True, kw_only=True)
class SideBranchConfig:
    """Architecture of a side branch."""

    layers: tuple[int, ...]
    """Layers of the backbone after which a block of the branch adds its output."""

    head: int = 0
    """Width of a `GridHead`, for backbones with narrow tokens; 0 adds none."""

    input: SideInput = 'mirage'
    """Channels that the branch takes; `conditioning` makes them."""

    def __post_init__(self) -> None:
        if self.input not in get_args(SideInput):
            raise ValueError(
                f'input: {self.input!r} is unknown, allowed are {get_args(SideInput)}'
            )


def side_channels(kind: SideInput, latent_channels: int) -> int:
    """Return the number of channels of a branch's input."""
    return latent_channels + (EXTRA_CHANNELS if kind == 'mirage' else latent_channels)


class SideBranch(nn.Module):
    """Parallel transformer blocks whose outputs are added to the backbone's hidden state."""

    def __init__(self, backbone: WanTransformer3DModel, config: SideBranchConfig) -> None:
        """Build a branch of the sizes of ``backbone``, which shares no weights with it.

        Raises:
            ValueError: ``config.layers`` is empty, has a layer twice or one that does not exist.
        """
        super().__init__()
        c = backbone.config
        fits = all(0 <= layer < c.num_layers for layer in config.layers)
        if not config.layers or not fits or len(set(config.layers)) < len(config.layers):
            raise ValueError(
                f'layers: {config.layers} do not fit the backbone, '
                f'needed are different numbers from 0 to {c.num_layers - 1}'
            )
        self.config = config
        self.gradient_checkpointing = False
        dim = c.num_attention_heads * c.attention_head_dim
        channels = side_channels(config.input, c.in_channels)
        self.embedding = nn.Conv3d(channels, dim, kernel_size=c.patch_size, stride=c.patch_size)
        self.proj_in = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(
            WanTransformerBlock(
                dim, c.ffn_dim, c.num_attention_heads, c.qk_norm, c.cross_attn_norm, c.eps
            )
            for _ in config.layers
        )
        self.proj_out = nn.ModuleList(nn.Linear(dim, dim) for _ in config.layers)
        for parameter in self.proj_out.parameters():
            nn.init.zeros_(parameter)
        self.head = GridHead(c, config) if config.head else None

    def forward(
        self,
        side: Float[Tensor, 'b c k h w'],
        hidden: Float[Tensor, 'b tokens dim'],
        text: Float[Tensor, 'b words dim'],
        time: Tensor,
        rotary: tuple[Tensor, Tensor],
    ) -> dict[int, Float[Tensor, 'b tokens dim']]:
        """Return what is added to the hidden state, by layer of the backbone."""
        state = self.proj_in(self.embedding(side).flatten(2).transpose(1, 2)) + hidden
        residuals = {}
        for layer, block, projection in zip(
            self.config.layers, self.blocks, self.proj_out, strict=True
        ):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                state = checkpoint(block, state, text, time, rotary, use_reentrant=False)
            else:
                state = block(state, text, time, rotary)
            residuals[layer] = projection(state)
        return residuals


class GridHead(nn.Module):
    """Convolutions over the latent grid whose output is added to the backbone's velocity.

    Input of a latent frame: its noisy latents and side channels, those of the frame before, and
    the backbone's last hidden state. The output starts at zero.
    """

    def __init__(self, c: FrozenDict, config: SideBranchConfig) -> None:
        """Build a head of ``config.head`` channels for a backbone of configuration ``c``."""
        super().__init__()
        width = config.head
        dim = c.num_attention_heads * c.attention_head_dim
        self.patch = tuple(c.patch_size)
        self.state = nn.Linear(dim, STATE_CHANNELS * math.prod(self.patch))
        channels = c.in_channels + side_channels(config.input, c.in_channels)
        self.proj_in = nn.Conv2d(2 * channels + STATE_CHANNELS, width, 3, padding=1)
        self.blocks = nn.ModuleList(_HeadBlock(width, dim) for _ in range(HEAD_BLOCKS))
        self.norm = nn.GroupNorm(8, width)
        self.proj_out = nn.Conv2d(width, c.out_channels, 3, padding=1)
        self.gate = nn.Linear(dim, c.out_channels)
        for parameter in (*self.proj_out.parameters(), *self.gate.parameters()):
            nn.init.zeros_(parameter)

    def forward(
        self,
        latents: Float[Tensor, 'b c k h w'],
        side: Float[Tensor, 'b s k h w'],
        state: Float[Tensor, 'b tokens dim'],
        time: Float[Tensor, 'b k dim'],
    ) -> Float[Tensor, 'b c k h w']:
        b, _, k, h, w = latents.shape
        current = torch.cat([latents, side], dim=1)
        previous = torch.cat([torch.zeros_like(current[:, :, :1]), current[:, :, :-1]], dim=2)
        state = unpatchify(self.state(state), self.patch, (k, h, w))
        x = torch.cat([current, previous, state], dim=1).movedim(2, 1).flatten(0, 1)
        level = F.silu(time).flatten(0, 1)
        x = self.proj_in(x.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x, level)
        out = self.proj_out(F.silu(self.norm(x))).unflatten(0, (b, k)).movedim(2, 1)
        gate = self.gate(level).unflatten(0, (b, k)).transpose(1, 2)
        return out + gate[..., None, None] * latents


class _HeadBlock(nn.Module):
    """A residual block; the noise level scales and shifts its normalised input."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.level = nn.Linear(dim, 2 * width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.level.weight)
        nn.init.zeros_(self.level.bias)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, 'n c h w'], level: Float[Tensor, 'n dim']) -> Tensor:
        scale, shift = self.level(level)[..., None, None].chunk(2, dim=1)
        x_modulated = self.norm(x) * (1 + scale) + shift
        return x + self.second(F.silu(self.first(F.silu(x_modulated))))


def unpatchify(
    tokens: Float[Tensor, 'b tokens values'],
    patch: tuple[int, int, int],
    shape: tuple[int, int, int],
) -> Float[Tensor, 'b c k h w']:
    """Return the latent grid from patch tokens, in the order of `WanTransformer3DModel`."""
    (p_t, p_h, p_w), (k, h, w) = patch, shape
    patches = tokens.reshape(len(tokens), k // p_t, h // p_h, w // p_w, p_t, p_h, p_w, -1)
    patches = patches.permute(0, 7, 1, 4, 2, 5, 3, 6)
    return patches.flatten(6, 7).flatten(4, 5).flatten(2, 3)
