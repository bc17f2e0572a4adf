"""Denoise one chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from jaxtyping import Float
import torch
from torch import Tensor

from mirage_model.interface import Cancelled

Scheduler = FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler
SCHEDULERS = {
    'FlowMatchEulerDiscreteScheduler': FlowMatchEulerDiscreteScheduler,
    'UniPCMultistepScheduler': UniPCMultistepScheduler,
}


def tiny_scheduler() -> Scheduler:
    """The scheduler that mirage-tiny ships: UniPC on flow matching, as Wan2.2 does."""
    return UniPCMultistepScheduler(
        prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=3.0
    )


@torch.no_grad()
def sample_chunk(
    velocity_of: Callable[..., Tensor],
    scheduler: Scheduler,
    *,
    context: Float[Tensor, 'b c context h w'],
    latent_frames: int,
    side: Float[Tensor, 'b s k h w'] | None,
    text: Float[Tensor, 'b words dim'],
    steps: int,
    generator: torch.Generator | Sequence[torch.Generator],
    cancelled: Callable[[], bool] = lambda: False,
) -> Float[Tensor, 'b c k h w']:
    """Latents of a chunk: the clean ``context`` first, unchanged, then what was imagined.

    ``velocity_of`` is called as `Backbone.forward` is. ``generator`` is one for the whole batch, or one
    for each of it, which then has the noise that it has alone.
    The context carries timestep 0 at every step. Noise is drawn on the CPU, so that a seed gives the same
    noise on every device. Raises Cancelled as soon as ``cancelled()`` is true between two steps.
    """
    if steps < 1:
        raise ValueError(f'the number of steps must be at least 1, got {steps}')
    b, c, n_context, h, w = context.shape
    if not 0 < n_context < latent_frames:
        raise ValueError(f'{n_context} context frames do not fit a chunk of {latent_frames}')
    shape = (c, latent_frames - n_context, h, w)
    if isinstance(generator, torch.Generator):
        noise = torch.randn((b, *shape), generator=generator)
    else:
        noise = torch.stack([torch.randn(shape, generator=own) for own in generator])
    target = noise.to(context)
    # the scheduler keeps its state in itself: a copy of its own for every chunk
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(steps, device=context.device)
    # of many steps the first two may round to one timestep, by which the scheduler would look for its place
    scheduler.set_begin_index(0)
    for timestep in scheduler.timesteps:
        if cancelled():
            raise Cancelled
        times = timestep.float().expand(b, latent_frames).clone()
        times[:, :n_context] = 0
        velocity = velocity_of(torch.cat([context, target], dim=2), times, text, side)
        target = scheduler.step(velocity[:, :, n_context:], timestep, target, return_dict=False)[0]
    return torch.cat([context, target], dim=2)
