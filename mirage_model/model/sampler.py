"""Denoise one chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from mirage_model.interface import Cancelled


class WanUniPCScheduler(UniPCMultistepScheduler):
    """UniPC at the noise levels of Wan's own sampler.

    They go in even steps from 0.999 to 0, then through ``flow_shift``; those of diffusers begin
    at 1.
    """

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        first = float(np.float32(0.999))
        sigmas = np.linspace(first, 0, num_inference_steps + 1)[:-1]
        super().set_timesteps(device=device, sigmas=sigmas)


Scheduler: TypeAlias = FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler
SCHEDULERS = {
    'WanUniPCScheduler': WanUniPCScheduler,
    'FlowMatchEulerDiscreteScheduler': FlowMatchEulerDiscreteScheduler,
    'UniPCMultistepScheduler': UniPCMultistepScheduler,
}


def tiny_scheduler() -> Scheduler:
    """Return the scheduler of mirage-tiny: UniPC on flow matching, as in Wan2.2."""
    return UniPCMultistepScheduler(
        prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=3.0
    )


def few_step_scheduler(shift: float) -> Scheduler:
    """Return a scheduler of straight steps: Euler's method on the flow, as distilled models need.

    UniPC of first order without its corrector is Euler's method, at UniPC's noise levels.
    """
    return UniPCMultistepScheduler(
        prediction_type='flow_prediction',
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_order=1,
        disable_corrector=list(range(64)),
    )


@torch.no_grad()
def sample_chunk(
    backbone: Callable[..., Tensor],
    scheduler: Scheduler,
    *,
    context: Float[Tensor, 'b c context h w'],
    latent_frames: int,
    side: Float[Tensor, 'b s video h w'] | None,
    references: Float[Tensor, 'b c r h w'] | None = None,
    preceding: Float[Tensor, 'b c p h w'] | None = None,
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
        side: Input of the side branch, for the chunk and the preceding frames; None leaves the
            side branch out.
        references: Clean latents of frames that show the same place.
        preceding: Clean latents of the frames before the context.
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
    references = context[:, :, :0] if references is None else references
    preceding = context[:, :, :0] if preceding is None else preceding
    before = torch.cat([references, context], dim=2)
    first, last = before.shape[2], before.shape[2] + shape[1]
    # a scheduler is stateful: each chunk takes a copy
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(steps, device=context.device)
    # with many steps the first two may round to one timestep, and a search by timestep is
    # ambiguous
    scheduler.set_begin_index(0)
    for timestep in scheduler.timesteps:
        if cancelled():
            raise Cancelled
        noisy = torch.cat([before, target, preceding], dim=2)
        timesteps = noisy.new_zeros(b, noisy.shape[2], dtype=torch.float32)
        timesteps[:, first:last] = timestep
        predict = partial(backbone, noisy, timesteps, side=side, references=references.shape[2])
        velocity = predict(text=text)
        if negative is not None:
            velocity = torch.lerp(predict(text=negative), velocity, guidance)
        target = scheduler.step(
            velocity[:, :, context_frames:latent_frames], timestep, target, return_dict=False
        )[0]
    return torch.cat([context, target], dim=2)
