"""The world model in training: its sizes, and the parameters that each stage trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
import inspect
from pathlib import Path
from typing import Any

from diffusers import WanTransformer3DModel
from jaxtyping import Float
from safetensors.torch import load_file
import torch
from torch import Tensor, nn

from mirage_model.io import read_json
from mirage_model.model.backbone import SIDE_BRANCHES, TINY, WAN22_5B, Backbone
from mirage_model.model.checkpoint import load_backbone
from mirage_model.model.codec import load_pretrained
from mirage_model.model.lora import add_adapter, merge_adapter
from mirage_model.model.side_branch import SideBranch, SideBranchConfig
from mirage_model.training.config import WorldModelConfig
from mirage_model.training.trainer import copy_parameters, load_parameters

SIZES = {'tiny': TINY, 'wan22_5b': WAN22_5B}

TRAINED = {
    'backbone': ('wan', 'text'),
    'side_branch': ('side_branch',),
    'adapter': ('side_branch', 'lora_'),
    'joint': ('wan', 'text', 'side_branch'),
}
"""Words in the names of the parameters that each stage trains."""


class WorldModel(nn.Module):
    """Backbone with its text embedding, which is learned where there is no text encoder."""

    _no_split_modules = ('WanTransformerBlock',)

    def __init__(self, backbone: Backbone, text: Tensor, *, learn_text: bool = True):
        super().__init__()
        self.backbone = backbone
        if learn_text:
            self.text = nn.Parameter(text)
        else:
            self.register_buffer('text', text)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        side: Tensor | None,
        text: Float[Tensor, 'b words dim'] | None = None,
        *,
        references: int = 0,
    ) -> Tensor:
        """Return the velocity; without ``text`` for the model's own text."""
        if text is None:
            text = self.text.expand(len(latents), *self.text.shape)
        return self.backbone(latents, timesteps, text, side, references=references)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a transformer and its side branch."""

    wan: Mapping[str, Any]
    """Arguments of `WanTransformer3DModel`."""
    side_branch: SideBranchConfig

    def of_channels(self, channels: int) -> Architecture:
        """Return the same for a codec of another number of channels."""
        wan = {**self.wan, 'in_channels': channels, 'out_channels': channels}
        return replace(self, wan=wan)


def default_architecture(config: WorldModelConfig) -> Architecture:
    """Return the architecture of a configuration's size."""
    branch = replace(SIDE_BRANCHES[config.size], input=config.side_input)
    return Architecture(wan=SIZES[config.size], side_branch=branch)


def read_architecture(folder: Path, config: WorldModelConfig) -> Architecture:
    """Return the architecture of a model folder, or of the run of a checkpoint.

    Raises:
        ValueError: A file is missing or not valid.
    """
    if (folder / 'model.json').is_file():
        wan = read_json(folder / 'transformer' / 'config.json')
        branch = read_json(folder / 'side_branch' / 'config.json')
    else:
        described = read_json(folder.parent / 'config.json')
        default = default_architecture(config)
        wan = described.get('backbone', default.wan)
        branch = described.get('side_branch', asdict(default.side_branch))
    names = inspect.signature(WanTransformer3DModel).parameters
    try:
        side_branch = SideBranchConfig(**{**branch, 'layers': tuple(branch['layers'])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{folder}: not a side branch, {error}') from None
    return Architecture(
        wan={name: value for name, value in wan.items() if name in names},
        side_branch=side_branch,
    )


def build(
    config: WorldModelConfig,
    *,
    seed: int = 0,
    backbone: Path | None = None,
    text: Float[Tensor, 'words dim'] | None = None,
    architecture: Architecture | None = None,
) -> WorldModel:
    """Return a model of random weights, or one with the backbone of a diffusers folder.

    Args:
        text: Embedding of a prompt; None learns an embedding of one word.
        architecture: Sizes; None takes those of the configuration.

    Raises:
        ValueError: The folder cannot be loaded, or the text does not fit.
    """
    torch.manual_seed(seed)
    architecture = architecture or default_architecture(config)
    if backbone is None:
        wan = WanTransformer3DModel(**architecture.wan)
    else:
        wan = load_pretrained(WanTransformer3DModel, backbone, torch.float32)
    side_branch = SideBranch(wan, architecture.side_branch)
    model = Backbone(wan, side_branch, prediction=config.prediction)
    if config.prediction == 'first_guess':
        nn.init.zeros_(wan.proj_out.weight)
        nn.init.zeros_(wan.proj_out.bias)
    model.gradient_checkpointing = config.gradient_checkpointing
    side_branch.gradient_checkpointing = config.gradient_checkpointing
    if text is None:
        return WorldModel(model, torch.randn(1, wan.config.text_dim))
    if text.ndim != 2 or text.shape[1] != wan.config.text_dim:
        raise ValueError(
            f'text: shape is {tuple(text.shape)}, must be (words, {wan.config.text_dim})'
        )
    return WorldModel(model, text, learn_text=False)


def fixed_text(folder: Path) -> Float[Tensor, 'words dim'] | None:
    """Return the text of a model folder that comes from a text encoder; None if it is learned,
    or for a checkpoint."""
    path = folder / 'text' / 'embedding.safetensors'
    if not path.is_file():
        return None
    text = load_file(path)['embedding'].float()
    return text if len(text) > 1 else None


def start_from(model: WorldModel, folder: Path, *, words: tuple[str, ...] = ('',)) -> None:
    """Copy those weights of a checkpoint or model folder whose names contain one of the words.

    The adapter of a model folder is merged into the layers that it adapts.

    Raises:
        ValueError: A weight is missing or does not fit.
    """
    if not (folder / 'model.json').is_file():
        load_parameters(model, folder, words=words)
        return
    backbone, text = load_backbone(folder)
    merge_adapter(backbone.wan)
    stored: dict[str, Tensor] = {
        f'backbone.{name}': value for name, value in backbone.named_parameters()
    }
    if 'text' in dict(model.named_parameters()):
        stored['text'] = text
    copy_parameters(model, stored, folder, words=words)


def begin_stage(model: WorldModel, config: WorldModelConfig) -> None:
    """Add the adapter if the stage trains one, and freeze all parameters but those of the
    stage.
    """
    if config.stage == 'adapter':
        add_adapter(model.backbone.wan, rank=config.lora_rank, targets=config.lora_targets)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(word in name for word in TRAINED[config.stage]))
