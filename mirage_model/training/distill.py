"""Distillation of a world model to few denoising steps, on the data of its training.

The path from noise to latents is cut into as many segments as the model shall need steps. Within
a segment the model learns the mean velocity from any point to the segment's end, so that a single
step of Euler's method takes it there. Its target is one short step of the teacher, the model as
it was at the start, and from there on the model's own prediction: consistency within each segment
(phased consistency models, arXiv 2405.18407).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
import torch
from torch import Tensor
from torch.func import functional_call

from mirage_model.model.codec import Codec
from mirage_model.model.resampler import Resampler
from mirage_model.model.sampler import Scheduler, few_step_scheduler
from mirage_model.model.text import PromptEncoder
from mirage_model.training.config import WorldModelConfig
from mirage_model.training.stages import WorldModel
from mirage_model.training.world_model import ChunkBatch, Velocity, WorldModelObjective, per_sample


class DistillObjective(WorldModelObjective):
    """Squared error of the mean velocity to the end of a segment.

    Chunks, in validation and as contexts, are generated in the steps that are learned.
    """

    def __init__(
        self,
        model: WorldModel,
        config: WorldModelConfig,
        latents: Path,
        clips: Path,
        codec: Codec,
        resampler: Resampler | None = None,
        captions: PromptEncoder | None = None,
    ):
        """Keep a copy of the parameters that are trained, as the teacher's; see
        `WorldModelObjective`."""
        steps = config.distill.steps
        few = replace(
            config,
            sampler_steps=steps,
            context=replace(config.context, imagined_steps=steps),
        )
        super().__init__(model, few, latents, clips, codec, resampler, captions)
        self._teacher = {
            name: value.detach().clone()
            for name, value in model.named_parameters()
            if value.requires_grad
        }
        scheduler = self.scheduler()
        scheduler.set_timesteps(steps * config.distill.substeps)
        self._sigmas: Float[Tensor, ' n'] = scheduler.sigmas

    def scheduler(self) -> Scheduler:
        return few_step_scheduler(self.config.shift)

    def loss(self, module: Velocity, batch: ChunkBatch, generator: torch.Generator) -> Tensor:
        x, substeps = batch.target, self.config.distill.substeps
        sigmas = self._sigmas.to(x.device)
        index = torch.randint(len(sigmas) - 1, (len(x),), generator=generator, device=x.device)
        start, after = sigmas[index], sigmas[index + 1]
        end = sigmas[(index // substeps + 1) * substeps]
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        noisy = batch.noisy(noise, start)
        with torch.no_grad():
            velocity = self._teach(batch, noisy, start)
            goal = batch.with_context(noisy + per_sample(after - start) * velocity)
            rest = batch.velocity(module, goal, after)
            goal = goal + per_sample(end - after) * rest
        velocity = batch.velocity(module, noisy, start)
        mean_velocity = (noisy - goal) / per_sample(start - end)
        return self.mean_error(velocity, mean_velocity, start - end)

    def _teach(self, batch: ChunkBatch, noisy: Tensor, sigma: Float[Tensor, ' b']) -> Tensor:
        """Return the teacher's velocity, guided from its own text to the captions."""
        self._teacher = {name: value.to(noisy.device) for name, value in self._teacher.items()}

        def teacher(*arguments: Any, **keywords: Any) -> Tensor:
            return functional_call(self.module, self._teacher, arguments, keywords)

        velocity = batch.velocity(teacher, noisy, sigma)
        guidance = self.config.distill.guidance
        if not batch.texts or guidance == 1:
            return velocity
        return torch.lerp(batch.velocity(teacher, noisy, sigma, own_text=True), velocity, guidance)
