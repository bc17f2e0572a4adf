"""Denoise one chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from jaxtyping import Float
import torch
from torch import Tensor

from mirage_model.interface import Cancelled

Scheduler: TypeAlias = FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler
SCHEDULERS = {
    'FlowMatchEulerDiscreteScheduler': FlowMatchEulerDiscreteScheduler,
    'UniPCMultistepScheduler': UniPCMultistepScheduler,
}


def tiny_scheduler() -> Scheduler:
    """Return the scheduler of mirage-tiny: UniPC on flow matching, as in Wan2.2."""
    return UniPCMultistepScheduler(
        prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=3.0
    )


@torch.no_grad()
def sample_chunk(
    backbone: Callable[..., Tensor],
    scheduler: Scheduler,
    *,
    context: Float[Tensor, 'b c context h w'],
    latent_frames: int,
    side: Float[Tensor, 'b s k h w'] | None,
    text: Float[Tensor, 'b words dim'],
    negative: Float[Tensor, 'b words dim'] | None = None,
    guidance: float = 1.0,
    steps: int,
    generator: torch.Generator | Sequence[torch.Generator],
    cancelled: Callable[[], bool] = lambda: False,
) -> Float[Tensor, 'b c k h w']:
    """Denoise one chunk and return its latents, the unchanged context first.

    Context latents carry timestep 0 in each step. Noise is drawn on the CPU, so that a seed gives
    the same noise on any device.

    Args:
        backbone: Predicts the flow's velocity; called as `Backbone.forward`.
        context: Clean latents.
        latent_frames: Latent frames of the chunk, context included.
        side: Input of the side branch; None leaves the side branch out.
        negative: Embedding that classifier-free guidance leads away from; None computes none.
        guidance: Weight of the velocity of ``text`` over that of ``negative``.
        generator: One generator for the batch, or one for each item. An item's noise depends on
            its own generator alone.
        cancelled: Polled before each step.

    Raises:
        ValueError: ``steps`` is below 1, or the context is empty or fills the chunk.
        Cancelled: ``cancelled()`` returned true.
    """
    if steps < 1:
        raise ValueError(f'steps: {steps} is too few, at least 1 is needed')
    b, c, context_frames, h, w = context.shape
    if not 0 < context_frames < latent_frames:
        raise ValueError(
            f'context: {context_frames} latent frames do not fit a chunk of {latent_frames}, '
            f'allowed are 1 to {latent_frames - 1}'
        )
    shape = (c, latent_frames - context_frames, h, w)
    if isinstance(generator, torch.Generator):
        noise = torch.randn((b, *shape), generator=generator)
    else:
        noise = torch.stack([torch.randn(shape, generator=item) for item in generator])
    target = noise.to(context)
    # a scheduler is stateful: each chunk takes a copy
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(steps, device=context.device)
    # with many steps the first two may round to one timestep, and a search by timestep is
    # ambiguous
    scheduler.set_begin_index(0)
    for timestep in scheduler.timesteps:
        if cancelled():
            raise Cancelled
        timesteps = timestep.float().expand(b, latent_frames).clone()
        timesteps[:, :context_frames] = 0
        noisy = torch.cat([context, target], dim=2)
        velocity = backbone(noisy, timesteps, text, side)
        if negative is not None:
            velocity = torch.lerp(backbone(noisy, timesteps, negative, side), velocity, guidance)
        target = scheduler.step(
            velocity[:, :, context_frames:], timestep, target, return_dict=False
        )[0]
    return torch.cat([context, target], dim=2)
