"""Perceptions by name, for configurations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mirage_model.perception import Perception
from mirage_model.perception.adapters import DepthAnything, DepthAnything3, MapAnything, UniDepth
from mirage_model.perception.embedded import EmbeddedPerception, load_network
from mirage_model.perception.labeller import LabelledPerception, Labeller

PERCEPTIONS: dict[str, Callable[[Path], Perception]] = {
    'embedded': lambda folder: EmbeddedPerception(load_network(folder)),
    'depth-anything': DepthAnything,
    'depth-anything-3': DepthAnything3,
    'map-anything': MapAnything,
    'unidepth': UniDepth,
}
"""Loaders of the perception network of mirage-tiny and of published depth models."""
SEGMENTS_DYNAMIC = ('embedded',)
"""Perceptions that segment dynamic objects without a labeller."""


def create_perception(name: str, folder: Path, *, labeller: Path | None = None) -> Perception:
    """Load a perception, with a labeller around it if a folder of one is given.

    Args:
        name: Key of `PERCEPTIONS`.
        folder: Folder in the layout of the perception's library.

    Raises:
        ValueError: The folder is missing or cannot be loaded.
    """
    if not folder.is_dir():
        raise ValueError(f'{folder}: the folder is missing')
    perception = PERCEPTIONS[name](folder)
    if labeller is None:
        return perception
    return LabelledPerception(perception, Labeller(labeller))
