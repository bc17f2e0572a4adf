"""Configuration of ``mirage train kit``, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from mirage_model.options import (
    Checked,
    Count,
    InputFolder,
    InputPath,
    Positive,
)
from mirage_model.training.config import Precision, WorldModelConfig


@dataclass(frozen=True, kw_only=True)
class KitCommand(Checked):
    """Train a world model for some minutes of a GPU, and write it as a model folder.

    The steps are chosen by the time that a step takes, so that the learning rate ends with the
    time. An interrupted training continues with the steps that were chosen.
    """

    out: Path
    """Folder of everything that is written: run/, model/, kit.json, and recorded data."""
    model: InputFolder | None = None
    """Model folder with codec, perception and resampler; None for mirage-tiny."""
    latents: InputFolder | None = None
    """Folder of prepared latents; None records clips of houses and prepares them."""
    clips: InputFolder | None = None
    """Folder of the clips that the latents were made of."""
    recorded: Count = 48
    """Clips to record without latents; an eighth as many are for validation."""
    minutes: Positive = 9.0
    """Time of the training, without recording and preparation [min]."""
    probe_steps: Count = 20
    """Steps that are timed first."""
    start: Annotated[InputPath | None, arg(name='from')] = None
    """Checkpoint or model folder to start from."""
    compile: bool = False
    """Compile the blocks: a minute at the start, then faster steps."""
    precision: Precision = 'no'
    """Precision of the forward pass: float32 ('no') or bfloat16."""
    learning_rate: Positive = 1e-3
    """Largest learning rate."""
    world_model: Annotated[WorldModelConfig, arg(name='')] = WorldModelConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.latents is None) != (self.clips is None):
            raise ValueError('clips: they belong to latents, give both or neither')
