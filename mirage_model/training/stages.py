"""The world model in training: its sizes, and the parameters that each stage trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffusers import WanTransformer3DModel
from jaxtyping import Float
import torch
from torch import Tensor, nn

from mirage_model.model.backbone import SIDE_BRANCHES, TINY, WAN22_5B, Backbone
from mirage_model.model.checkpoint import load_backbone
from mirage_model.model.codec import load_pretrained
from mirage_model.model.lora import add_adapter, merge_adapter
from mirage_model.model.side_branch import SideBranch
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


def build(
    config: WorldModelConfig,
    *,
    seed: int = 0,
    backbone: Path | None = None,
    text: Float[Tensor, 'words dim'] | None = None,
) -> WorldModel:
    """Return a model of random weights, or one with the backbone of a diffusers folder.

    Args:
        text: Embedding of a prompt; None learns an embedding of one word.

    Raises:
        ValueError: The folder cannot be loaded, or the text does not fit.
    """
    torch.manual_seed(seed)
    if backbone is None:
        wan = WanTransformer3DModel(**SIZES[config.size])
    else:
        wan = load_pretrained(WanTransformer3DModel, backbone, torch.float32)
    branch = replace(SIDE_BRANCHES[config.size], input=config.side_input)
    side_branch = SideBranch(wan, branch)
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
