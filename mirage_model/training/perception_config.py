"""Configuration of the training of the perception network, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from mirage_model.options import (
    Checked,
    Count,
    InputFolder,
    NotNegative,
    Positive,
    Share,
)
from mirage_model.training.config import ContextConfig, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Checked):
    """Largest random changes of a frame; zoom, blur and each noise change half of the frames."""

    zoom: Positive = 1.6
    """Magnification."""
    colour: NotNegative = 0.25
    """Relative change of brightness, contrast and saturation."""
    blur: NotNegative = 2.0
    """Standard deviation of the blur [px]."""
    noise: NotNegative = 0.05
    """Standard deviation of intensity, per pixel."""
    blotches: NotNegative = 0.04
    """Standard deviation of intensity, per patch of 8 pixels."""


@dataclass(frozen=True, kw_only=True)
class SimulatedMemoryConfig(Checked):
    """Memory of other frames of the clip, whose depth the perception network takes as an input."""

    empty: Share = 0.3
    """Share of samples with an empty memory."""
    max_frames: Count = 3
    """Largest number of frames in the memory; some count as observed, the others as generated."""
    reach: Count = 40
    """Largest distance of these frames from the sample [frames]."""
    cell: Count = 8
    """Side of a latent cell [px]."""
    splat_size: Count = 3
    """Largest side of the square that a latent point covers in a readout [cells]; odd."""
    noise: ContextConfig = ContextConfig(depth_frame=0.15, depth_cell=0.1)


@dataclass(frozen=True, kw_only=True)
class PerceptionConfig(Checked):
    """Samples, network and weights of the losses of the perception network."""

    batch: Count = 16
    """Frames per batch."""
    average: Share = 0.995
    """Decay of the moving average of the weights, which is what is validated and saved."""
    gradient: NotNegative = 0.5
    """Weight of differences of log depth between neighbouring pixels."""
    confidence: NotNegative = 0.1
    """Weight of the likelihood of the depth error."""
    sky: NotNegative = 0.5
    """Weight of the sky mask."""
    moving: NotNegative = 0.5
    """Weight of the mask of dynamic objects."""
    moving_pixel: NotNegative = 3.0
    """Weight of a pixel on a dynamic object relative to other pixels."""
    widths: tuple[Count, ...] = (24, 48, 80, 112)
    """Channels of the network at strides 2, 4, 8 and 16."""
    augment: AugmentConfig = AugmentConfig()
    memory: SimulatedMemoryConfig = SimulatedMemoryConfig()


@dataclass(frozen=True, kw_only=True)
class PerceptionTraining(Checked):
    """Train the embedded perception network on recorded clips."""

    clips: InputFolder
    """Folder of clips, with train/ and validation/."""
    run: Path
    """Run folder, in which network/ is written; an interrupted training continues."""
    start: Annotated[InputFolder | None, arg(name='from')] = None
    """Folder of a network to start from."""
    perception: Annotated[PerceptionConfig, arg(name='')] = PerceptionConfig()
    trainer: Annotated[TrainerConfig, arg(name='')] = TrainerConfig(
        steps=3000,
        learning_rate=2e-3,
        weight_decay=0.02,
        clip_norm=5.0,
        precision='bf16',
        validate_every=1000,
    )
