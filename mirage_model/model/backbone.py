"""The Wan transformer with the side branch."""

from __future__ import annotations

from typing import Literal, TypeAlias

from diffusers import WanTransformer3DModel
from jaxtyping import Float
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mirage_model.model.side_branch import SideBranch, SideBranchConfig, unpatchify

Prediction: TypeAlias = Literal['velocity', 'first_guess']

MIN_NOISE_LEVEL = 1e-3
"""Smallest noise level by which a correction of clean latents is divided."""

WAN22_5B = {
    'patch_size': (1, 2, 2),
    'num_attention_heads': 24,
    'attention_head_dim': 128,
    'in_channels': 48,
    'out_channels': 48,
    'text_dim': 4096,
    'freq_dim': 256,
    'ffn_dim': 14336,
    'num_layers': 30,
}
TINY = {
    'patch_size': (1, 4, 4),
    'num_attention_heads': 8,
    'attention_head_dim': 32,
    'in_channels': 16,
    'out_channels': 16,
    'text_dim': 32,
    'freq_dim': 64,
    'ffn_dim': 768,
    'num_layers': 6,
}
"""Arguments of `WanTransformer3DModel`: Wan2.2-TI2V-5B and mirage-tiny."""

SIDE_BRANCHES = {
    'wan22_5b': SideBranchConfig(layers=tuple(range(0, 30, 4))),
    'tiny': SideBranchConfig(layers=(0, 2, 4), head=128),
}


class Backbone(nn.Module):
    """Predict the flow's velocity (noise minus latents), with a noise level for each latent frame.

    Without a side input, or with an untrained side branch, the output equals that of
    `WanTransformer3DModel.forward` bit for bit.

    With the prediction 'first_guess' the network's output is a correction of the first guess, the
    latents of the side input, and the velocity leads to their sum. `training.stages.build` starts
    at a correction of zero.
    """

    def __init__(
        self,
        wan: WanTransformer3DModel,
        side_branch: SideBranch,
        *,
        prediction: Prediction = 'velocity',
    ) -> None:
        super().__init__()
        self.prediction = prediction
        self.wan = wan
        self.side_branch = side_branch
        self.gradient_checkpointing = False

    def forward(
        self,
        latents: Float[Tensor, 'b c k h w'],
        timesteps: Float[Tensor, 'b k'],
        text: Float[Tensor, 'b words dim'],
        side: Float[Tensor, 'b s video h w'] | None = None,
        *,
        references: int = 0,
    ) -> Float[Tensor, 'b c video h w']:
        """Return the velocity, in the dtype of ``latents``; computation runs in the dtype of the
        weights.

        Args:
            latents: Noisy latents; the first ``references`` frames are reference frames, the
                others are the video.
            timesteps: From 0 (clean) to 1000 (noise).
            text: Embedding of the prompt.
            side: Channels of `conditioning.side_input`; None leaves the side branch out.
            references: Number of reference frames. They lie at negative times, below the video,
                as in the training code of the paper; the side branch does not see them.
        """
        wan = self.wan
        b, _, k, h, w = latents.shape
        output_dtype, dtype = latents.dtype, wan.patch_embedding.weight.dtype
        latents, text = latents.to(dtype), text.to(dtype)
        side = None if side is None else side.to(dtype)
        p_t, p_h, p_w = wan.config.patch_size
        assert p_t == 1, 'a timestep for every latent frame needs patches of one latent frame'
        tokens_per_frame = (h // p_h) * (w // p_w)

        rotary = self._rotary(latents, references)
        hidden = wan.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()
        token_timesteps = timesteps.repeat_interleave(tokens_per_frame, dim=1)
        temb, time, text, _ = wan.condition_embedder(
            token_timesteps.flatten(), text, None, timestep_seq_len=token_timesteps.shape[1]
        )
        time = time.unflatten(2, (6, -1))

        skip = references * tokens_per_frame
        residuals = {}
        if side is not None:
            video_rotary = (rotary[0][:, skip:], rotary[1][:, skip:])
            residuals = self.side_branch(
                side, hidden[:, skip:], text, time[:, skip:], video_rotary
            )
        for layer, block in enumerate(wan.blocks):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, text, time, rotary, use_reentrant=False)
            else:
                hidden = block(hidden, text, time, rotary)
            if layer in residuals:
                residual = F.pad(residuals[layer], (0, 0, skip, 0)) if skip else residuals[layer]
                hidden = hidden + residual

        hidden, temb, k = hidden[:, skip:], temb[:, skip:], k - references
        latents, timesteps = latents[:, :, references:], timesteps[:, references:]
        shift, scale = (wan.scale_shift_table.unsqueeze(0) + temb.unsqueeze(2)).chunk(2, dim=2)
        normed = wan.norm_out(hidden.float()) * (1 + scale.squeeze(2)) + shift.squeeze(2)
        normed = normed.type_as(hidden)
        output = unpatchify(wan.proj_out(normed), (p_t, p_h, p_w), (k, h, w))
        head = self.side_branch.head
        if side is not None and head is not None:
            output = output + head(latents, side, normed, temb[:, ::tokens_per_frame])
        if self.prediction == 'first_guess':
            assert side is not None, 'the first guess comes with the side input'
            noise_level = (timesteps / 1000).clamp(min=MIN_NOISE_LEVEL)[:, None, :, None, None]
            clean = side[:, : latents.shape[1]] + output
            output = (latents - clean) / noise_level
        return output.to(output_dtype)

    def _rotary(
        self, latents: Float[Tensor, 'b c k h w'], references: int
    ) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the rotary embedding, (1, tokens, 1, head).

        Frame i of r references has the time i - r and rows that follow those of the video.
        """
        rope = self.wan.rope
        cos, sin = rope(latents[:, :, references:])
        if not references:
            return cos, sin
        rows, columns = (s // p for s, p in zip(latents.shape[-2:], rope.patch_size[1:]))
        shape = (references, rows, columns, -1)
        parts = []
        for table, video, sign in ((rope.freqs_cos, cos, 1), (rope.freqs_sin, sin, -1)):
            time, row, column = table.split([rope.t_dim, rope.h_dim, rope.w_dim], dim=1)
            # tables begin at time 0: cosines are even in time, sines are odd
            time = sign * time[1 : references + 1].flip(0)
            grid = (
                time[:, None, None].expand(shape),
                row[None, rows : 2 * rows, None].expand(shape),
                column[None, None, :columns].expand(shape),
            )
            reference = torch.cat(grid, dim=-1).flatten(0, 2)[None, :, None]
            parts.append(torch.cat([reference, video], dim=1))
        return parts[0], parts[1]
