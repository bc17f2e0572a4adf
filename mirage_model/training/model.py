"""The world model that is trained: its configuration, its sizes, and what each stage trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from diffusers import WanTransformer3DModel
from jaxtyping import Float
import torch
from torch import Tensor, nn

from mirage_model.memory.registry import MEMORIES
from mirage_model.model.backbone import SIDE_BRANCHES, TINY, WAN22_5B, Backbone, Prediction
from mirage_model.model.checkpoint import load_backbone
from mirage_model.model.codec import load_pretrained
from mirage_model.model.lora import add_adapter, merge_adapter
from mirage_model.model.side_branch import SideBranch
from mirage_model.training.context import ContextConfig
from mirage_model.training.trainer import copy_parameters, load_parameters

SIZES = {'tiny': TINY, 'wan22_5b': WAN22_5B}

TRAINED = {
    'backbone': ('wan', 'text'),
    'side_branch': ('side_branch',),
    'adapter': ('side_branch', 'lora_'),
    'joint': ('wan', 'text', 'side_branch'),
}
"""Parameters of a stage: those with one of these words in their names."""


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """``size`` is one of `SIZES`, ``batch`` that of one process. ``shift`` moves the noise levels that are trained towards noise, as
    the sampler's schedule does. ``memory`` is one of `MEMORIES`; ``dynamic_filter`` keeps out of it
    what moves. ``gradient_checkpointing`` computes every block anew for the backward pass, for memory.
    ``prediction`` is that of `Backbone`.
    """

    size: str = 'tiny'
    stage: str = 'joint'
    batch: int = 4
    shift: float = 3.0
    memory: str = 'latent'
    splat_size: int = 3
    dynamic_filter: bool = True
    lora_rank: int = 64
    gradient_checkpointing: bool = False
    validation_clips: int = 8
    sampler_steps: int = 8
    prediction: Prediction = 'velocity'
    context: ContextConfig = ContextConfig()

    def __post_init__(self) -> None:
        choices = {
            'size': SIZES,
            'stage': TRAINED,
            'memory': MEMORIES,
            'prediction': get_args(Prediction),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f'{name} must be one of {sorted(allowed)}, got {getattr(self, name)!r}'
                )
        if self.stage == 'backbone' and self.prediction == 'first_guess':
            raise ValueError(
                "stage: 'backbone' has no memory and so no first guess, allowed are the other stages"
            )
        for name in ('batch', 'splat_size', 'lora_rank', 'validation_clips', 'sampler_steps'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')


class WorldModel(nn.Module):
    """The backbone with its text: an embedding that is learned where there is no text encoder."""

    _no_split_modules = ('WanTransformerBlock',)

    def __init__(self, backbone: Backbone, text: Tensor, *, learn_text: bool = True):
        super().__init__()
        self.backbone = backbone
        if learn_text:
            self.text = nn.Parameter(text)
        else:
            self.register_buffer('text', text)

    def forward(self, latents: Tensor, timesteps: Tensor, side: Tensor | None) -> Tensor:
        text = self.text.expand(len(latents), *self.text.shape)
        return self.backbone(latents, timesteps, text, side)


def build(
    config: WorldModelConfig,
    *,
    seed: int = 0,
    backbone: Path | None = None,
    text: Float[Tensor, 'words dim'] | None = None,
) -> WorldModel:
    """The model of a size with random weights, or around the backbone of a diffusers folder.

    ``text`` is the embedding of a prompt; None is one word, to be learned. Raises ValueError naming the
    folder that cannot be loaded, or a text that does not fit.
    """
    torch.manual_seed(seed)
    if backbone is None:
        wan = WanTransformer3DModel(**SIZES[config.size])
    else:
        wan = load_pretrained(WanTransformer3DModel, backbone, torch.float32)
    side_branch = SideBranch(wan, SIDE_BRANCHES[config.size])
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
            f'the text is {tuple(text.shape)}, the backbone takes (words, {wan.config.text_dim})'
        )
    return WorldModel(model, text, learn_text=False)


def start_from(model: WorldModel, folder: Path, *, words: tuple[str, ...] = ('',)) -> None:
    """Copy the weights of a checkpoint, or of a model folder: those alone that have one of the words in their names.

    An adapter in a model folder is added to the layers that it adapts.

    Raises ValueError that names what does not fit.
    """
    if not (folder / 'model.json').is_file():
        load_parameters(model, folder, words=words)
        return
    backbone, text = load_backbone(folder)
    merge_adapter(backbone.wan)
    stored = {f'backbone.{name}': value for name, value in backbone.named_parameters()}
    if 'text' in dict(model.named_parameters()):
        stored['text'] = text
    copy_parameters(model, stored, folder, words=words)


def begin_stage(model: WorldModel, config: WorldModelConfig) -> None:
    """Add what the stage adds, and let its own parameters alone be trained."""
    if config.stage == 'adapter':
        add_adapter(model.backbone.wan, rank=config.lora_rank)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(word in name for word in TRAINED[config.stage]))
