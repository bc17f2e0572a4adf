"""Options of an engine for commands and the node, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mirage_model.options import Checked, InputFolderName


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Checked):
    """Model of an engine, and how it runs."""

    model_folder: InputFolderName = ''
    """Folder of weights; empty for mirage-tiny."""
    labeller: InputFolderName = ''
    """Folder of a labeller of dynamic objects and sky; empty for that of the model, if any."""
    allow_unscaled_depth: bool = False
    """Accept images without metric depth, and estimated depth whose scale in metres is unknown."""
    refine_cameras: bool = False
    """Estimate the cameras of generated frames before they are written to the memory."""
    compile: bool = False
    """Compile the blocks of the transformer: minutes at the start, then faster steps."""
    offload: bool = False
    """Keep the transformer's weights in RAM and copy those of each layer to the device."""
    float8: bool = False
    """Store the transformer's weights in 8 bits, which takes half the device memory."""

    @property
    def engine_options(self) -> EngineOptions:
        """The fields of this class alone, of a command that has more."""
        return EngineOptions(**{f.name: getattr(self, f.name) for f in fields(EngineOptions)})
