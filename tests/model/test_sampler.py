from __future__ import annotations

from models import CHANNELS, small_backbone
import pytest
import torch

from mirage_model.interface import Cancelled
from mirage_model.model.sampler import sample_chunk, tiny_scheduler


def sample(seed: int = 0, steps: int = 3, **changes):
    arguments = {
        'context': torch.ones(1, CHANNELS, 1, 4, 6),
        'latent_frames': 3,
        'side': None,
        'text': torch.zeros(1, 1, 8),
        'steps': steps,
        'generator': torch.Generator().manual_seed(seed),
    }
    return sample_chunk(small_backbone().eval(), tiny_scheduler(), **{**arguments, **changes})


def test_context_is_returned_unchanged():
    latents = sample()
    assert latents.shape == (1, CHANNELS, 3, 4, 6)
    assert torch.equal(latents[:, :, :1], torch.ones(1, CHANNELS, 1, 4, 6))


def test_latents_depend_on_the_seed_alone():
    assert torch.equal(sample(seed=1), sample(seed=1))
    assert not torch.equal(sample(seed=1), sample(seed=2))


def test_exact_velocity_leads_to_the_clean_latents():
    """With the exact velocity of a straight flow, any number of steps ends at the clean
    latents.
    """
    clean = torch.randn(1, CHANNELS, 3, 4, 6, generator=torch.Generator().manual_seed(5))

    class Straight(torch.nn.Module):
        def forward(self, latents, times, text, side, references):
            sigma = (times / 1000).view(1, 1, -1, 1, 1).clamp(min=1e-6)
            return (latents - clean) / sigma

    for steps in (1, 4, 10, 1000):  # of a thousand the first two are at one timestep
        result = sample_chunk(
            Straight(),
            tiny_scheduler(),
            context=clean[:, :, :1],
            latent_frames=3,
            side=None,
            text=torch.zeros(1, 1, 8),
            steps=steps,
            generator=torch.Generator().manual_seed(0),
        )
        torch.testing.assert_close(result, clean, atol=2e-2, rtol=0)


def test_cancel_takes_effect_between_two_steps():
    asked = []

    def cancelled() -> bool:
        asked.append(None)
        return len(asked) == 3

    with pytest.raises(Cancelled):
        sample(steps=10, cancelled=cancelled)
    assert len(asked) == 3


@pytest.mark.parametrize('changes', [{'steps': 0}, {'latent_frames': 1}])
def test_invalid_counts_are_rejected(changes):
    with pytest.raises(ValueError):
        sample(**changes)


@pytest.mark.parametrize('guidance', [1.0, 4.5])
def test_guidance_equals_its_formula_in_each_step(guidance):
    """v = v(negative) + guidance (v(prompt) - v(negative)), as classifier-free guidance has it."""
    generator = torch.Generator().manual_seed(3)
    prompt, negative = torch.randn(2, 1, 5, 8, generator=generator)
    backbone = small_backbone().eval()

    def guided(latents, times, text, side, references):
        unguided = backbone(latents, times, negative, side)
        return unguided + guidance * (backbone(latents, times, text, side) - unguided)

    arguments = {
        'context': torch.ones(1, CHANNELS, 1, 4, 6),
        'latent_frames': 3,
        'side': None,
        'text': prompt,
        'steps': 3,
    }
    seed = torch.Generator().manual_seed
    expected = sample_chunk(guided, tiny_scheduler(), generator=seed(0), **arguments)
    result = sample_chunk(
        backbone,
        tiny_scheduler(),
        generator=seed(0),
        negative=negative,
        guidance=guidance,
        **arguments,
    )
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    plain = sample_chunk(backbone, tiny_scheduler(), generator=seed(0), **arguments)
    assert torch.allclose(plain, result, atol=1e-5) == (guidance == 1)
