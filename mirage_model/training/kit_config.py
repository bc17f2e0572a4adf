"""Configuration of ``mirage train kit``, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
import math
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from mirage_model.training.config import Precision, WorldModelConfig, check_count


@dataclass(frozen=True, kw_only=True)
class KitCommand:
    """Train a world model for some minutes of a GPU, and write it as a model folder.

    The steps are chosen by the time that a step takes, so that the learning rate ends with the
    time. An interrupted training continues with the steps that were chosen.
    """

    out: Path
    """Folder of everything that is written: run/, model/, kit.json, and recorded data."""
    model: Path | None = None
    """Model folder with codec, perception and resampler; None for mirage-tiny."""
    latents: Path | None = None
    """Folder of prepared latents; None records clips of houses and prepares them."""
    clips: Path | None = None
    """Folder of the clips that the latents were made of."""
    recorded: int = 48
    """Clips to record without latents; an eighth as many are for validation."""
    minutes: float = 9.0
    """Time of the training, without recording and preparation [min]."""
    probe_steps: int = 20
    """Steps that are timed first."""
    start: Annotated[Path | None, arg(name='from')] = None
    """Checkpoint or model folder to start from."""
    compile: bool = False
    """Compile the blocks: a minute at the start, then faster steps."""
    precision: Precision = 'no'
    """Precision of the forward pass: float32 ('no') or bfloat16."""
    learning_rate: float = 1e-3
    """Largest learning rate."""
    world_model: Annotated[WorldModelConfig, arg(name='')] = WorldModelConfig()

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise ValueError(f'minutes: {self.minutes}, must be positive')
        if (self.latents is None) != (self.clips is None):
            raise ValueError('clips: they belong to latents, give both or neither')
        for name in ('recorded', 'probe_steps'):
            check_count(name, getattr(self, name))
