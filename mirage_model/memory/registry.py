"""Memories by name, so that a configuration can choose one."""

from __future__ import annotations

from collections.abc import Callable

from mirage_model.memory import Encoder, Memory
from mirage_model.memory.baselines.lifted import LiftedFeatures
from mirage_model.memory.baselines.none import NoMemory
from mirage_model.memory.baselines.rgb_cloud import RgbCloud
from mirage_model.memory.baselines.views import RetrievedViews
from mirage_model.memory.latent import LatentMemory, MemoryConfig

MEMORIES: dict[str, Callable[[MemoryConfig, Encoder], Memory]] = {
    'latent': lambda config, encoder: LatentMemory(config),
    'rgb_cloud': RgbCloud,
    'retrieved_views': lambda config, encoder: RetrievedViews(config, index='surfels'),
    'overlapping_views': lambda config, encoder: RetrievedViews(config, index='overlap'),
    'lifted_features': LiftedFeatures,
    'none': lambda config, encoder: NoMemory(config.channels),
}
"""The latent memory, those it is measured against, and none."""


def create_memory(name: str, config: MemoryConfig, encoder: Encoder) -> Memory:
    """An empty memory; what of ``config`` does not concern it is left aside.

    ``encoder`` is the `Codec` that the latents come from. Raises ValueError for a name that is
    not in `MEMORIES`.
    """
    if name not in MEMORIES:
        raise ValueError(f'memory must be one of {sorted(MEMORIES)}, got {name!r}')
    if config.channels != encoder.channels:
        raise ValueError(
            f'the memory is for {config.channels} channels, the codec has {encoder.channels}'
        )
    return MEMORIES[name](config, encoder)
