"""Memories by name, for configurations."""

from __future__ import annotations

from collections.abc import Callable

from mirage_model.memory import Encoder, Memory
from mirage_model.memory.baselines.lifted_features import LiftedFeatures
from mirage_model.memory.baselines.none import NoMemory
from mirage_model.memory.baselines.retrieved_views import RetrievedViews
from mirage_model.memory.baselines.rgb_cloud import RgbCloud
from mirage_model.memory.latent import LatentMemory, MemoryConfig

MEMORIES: dict[str, Callable[[MemoryConfig, Encoder], Memory]] = {
    'latent': lambda config, encoder: LatentMemory(config),
    'rgb_cloud': RgbCloud,
    'retrieved_views': lambda config, encoder: RetrievedViews(config, index='surfels'),
    'overlapping_views': lambda config, encoder: RetrievedViews(config, index='overlap'),
    'lifted_features': LiftedFeatures,
    'none': lambda config, encoder: NoMemory(config.channels),
}
"""Constructors of the latent memory and of its baselines."""


def create_memory(name: str, config: MemoryConfig, encoder: Encoder) -> Memory:
    """Return an empty memory. Each kind uses the fields of ``config`` that apply to it.

    Args:
        name: Key of `MEMORIES`.
        config: Configuration of the memory.
        encoder: Codec of the latents.

    Raises:
        ValueError: If the name is unknown, or memory and codec differ in channels.
    """
    if name not in MEMORIES:
        raise ValueError(f'memory: {name!r} is unknown, choose one of {sorted(MEMORIES)}')
    if config.channels != encoder.channels:
        raise ValueError(
            f'channels: the memory has {config.channels}, the codec has {encoder.channels}'
        )
    return MEMORIES[name](config, encoder)
