"""Configuration of the import, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from mirage_model.options import (
    Checked,
    Count,
    InputFile,
    InputFolder,
    Positive,
    Whole,
)

Source = Literal['wan', 'official', 'spatia']


@dataclass(frozen=True, kw_only=True)
class ImportCommand(Checked):
    """Make a model folder of published weights.

    They are Wan2.2-TI2V-5B alone (wan), with the side branch and the adapter of the paper's
    training code (official), or with those of Spatia (spatia). Files are told apart by their
    contents. Licences are those of the files: Wan2.2, the paper's code and Spatia's are free for
    any use, a perception network may not be.
    """

    source: Annotated[Source, arg(name='from')]
    """Origin of the weights."""
    folder: Positional[InputFolder]
    """Folder of the files."""
    out: Path
    """Model folder to write."""
    wan: InputFolder | None = None
    """Folder of Wan2.2-TI2V-5B, original or in diffusers' layout; None takes the same folder."""
    merge: UseAppendAction[tuple[InputFile, ...]] = ()
    """LoRA files to merge into the transformer, such as one for few steps."""
    decoder: InputFile | None = None
    """File of the decoder taew2_2, which then decodes in place of the VAE."""
    tiling: bool = False
    """Encode and decode in tiles, which saves memory."""
    perception: InputFolder | None = None
    """Folder of the perception network; None takes that of mirage-tiny."""
    perception_name: str = 'embedded'
    """Kind of the perception network."""
    prompt: str = ''
    """Text of requests that come without one."""
    precision: Literal['bfloat16', 'float32'] = 'bfloat16'
    """Type of the stored transformer, side branch and text encoder; the VAE stays as it is."""
    name: str | None = None
    """Name of the model; None is the origin's."""
    height: Count = 704
    """Height of the frames [px]."""
    width: Count = 1280
    """Width of the frames [px]."""
    chunk_frames: Count = 33
    """Frames of a chunk, the context frame included."""
    frame_rate: Positive = 16.0
    """Frames per second."""
    steps: Count = 20
    """Default number of denoising steps."""
    references: Whole = 4
    """Largest number of reference frames of a chunk; without effect for Wan alone."""
    preceding: Whole = 2
    """Largest number of preceding latent frames of a chunk; used for origin official alone."""
