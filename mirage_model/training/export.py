"""Export of trained parts as a model folder.

mirage-tiny is stored in float16, so that tests and metrics run on the shipped weights. The large
model is stored in bfloat16, with its VAE unchanged.
"""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path
import shutil
from typing import Any

from jaxtyping import Float
from safetensors.torch import load_file
import torch
from torch import Tensor

from mirage_model.model.checkpoint import ModelConfig, save_model
from mirage_model.model.codec import BlockAutoencoder, load_autoencoder
from mirage_model.model.lora import add_adapter, remove_adapter, save_adapter
from mirage_model.model.resampler import load_resampler
from mirage_model.model.sampler import few_step_scheduler, tiny_scheduler
from mirage_model.perception.embedded import load_network, save_network
from mirage_model.training.config import (
    ContextConfig,
    DistillConfig,
    ExportConfig,
    WorldModelConfig,
)
from mirage_model.training.stages import build, read_architecture
from mirage_model.training.trainer import load_parameters
from mirage_model.training.world_model_command import OWN_TEXT

SETTINGS = {
    'tiny': ModelConfig(
        name='mirage-tiny',
        height=96,
        width=160,
        chunk_frames=17,
        frame_rate=8.0,
        steps=4,
        splat_size=3,
    ),
    'wan22_5b': ModelConfig(
        name='wan22-5b',
        height=704,
        width=1280,
        chunk_frames=33,
        frame_rate=24.0,
        steps=20,
        splat_size=3,
    ),
}
"""Defaults of each size."""


def export(
    out: Path,
    *,
    world_model: Path | None,
    vae: Path,
    perception: Path,
    resampler: Path | None = None,
    text: Float[Tensor, 'words dim'] | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Write a model folder from trained parts.

    Args:
        world_model: Checkpoint in its run folder. None makes a mirage-tiny without a transformer,
            whose prediction is the resampler's first guess.
        vae: VAE folder.
        perception: Perception folder.
        resampler: Resampler folder; needed for the prediction 'first_guess'.
        text: Embedding of the prompt of the training; None takes that of the run.
        settings: Fields of `ModelConfig` that differ from `SETTINGS` and from the run.

    Raises:
        ValueError: A part is missing or does not fit.
    """
    if world_model is None:
        trained = WorldModelConfig(prediction='first_guess')
        settings = {'steps': 1, **(settings or {})}
    else:
        trained = trained_config(world_model.parent)
        if trained.distill.steps:
            settings = {'steps': trained.distill.steps, **(settings or {})}
        own_text = world_model.parent / OWN_TEXT
        if text is None and own_text.is_file():
            text = load_file(own_text)['embedding'].float()
    config = replace(
        SETTINGS[trained.size],
        splat_size=trained.splat_size,
        memory=trained.memory,
        prediction=trained.prediction,
        references=trained.references,
        preceding=trained.preceding,
        **(settings or {}),
    )
    if config.prediction == 'first_guess' and resampler is None:
        raise ValueError("resampler: the prediction 'first_guess' needs one, give its folder")
    backbone, scheduler = None, None
    tiny = trained.size == 'tiny'
    dtype = torch.float16 if tiny else torch.bfloat16
    if world_model is not None:
        stored = load_file(world_model / 'parameters.safetensors')
        if text is None and 'text' not in stored:
            raise ValueError(f'{world_model}: learned no text, give the one of its training')
        ranks = [len(value) for name, value in stored.items() if 'lora_A' in name]
        architecture = read_architecture(world_model, trained)
        model = build(trained, text=text, architecture=architecture)
        if ranks:
            add_adapter(model.backbone.wan, rank=ranks[0], targets=trained.lora_targets)
        load_parameters(model, world_model)
        if ranks:
            save_adapter(out / 'side_branch', model.backbone.wan, rank=ranks[0])
            remove_adapter(model.backbone.wan)
        if trained.distill.steps:
            scheduler = few_step_scheduler(trained.shift)
        else:
            scheduler = tiny_scheduler()
            scheduler = type(scheduler).from_config(scheduler.config, flow_shift=trained.shift)
        backbone, text = model.backbone.to(dtype), model.text.detach().to(dtype)
    codec = load_autoencoder(vae, torch.float32)
    codec.register_to_config(_name_or_path=config.name)  # not the folder it came from
    save_model(
        out,
        config=config,
        vae=codec.half() if tiny and not isinstance(codec, BlockAutoencoder) else codec,
        backbone=backbone,
        scheduler=scheduler,
        text=text,
        resampler=None if resampler is None else load_resampler(resampler),
    )
    if config.perception == 'embedded':
        save_network(out / 'perception', load_network(perception))
    else:
        shutil.copytree(perception, out / 'perception', dirs_exist_ok=True)


@torch.no_grad()
def main(config: ExportConfig) -> int:
    """Write the model folder, and print its size."""
    names = ('name', 'height', 'width', 'chunk_frames', 'frame_rate', 'steps')
    settings = {name: getattr(config, name) for name in names}
    settings['perception'] = config.perception_name
    export(
        config.out,
        world_model=config.world_model,
        vae=config.vae,
        perception=config.perception,
        resampler=config.resampler,
        text=None if config.text is None else load_file(config.text)['embedding'].float(),
        settings={name: value for name, value in settings.items() if value is not None},
    )
    size = sum(path.stat().st_size for path in config.out.rglob('*') if path.is_file())
    print(f'wrote {config.out}: {size / 1e6:.1f} MB')
    return 0


def trained_config(run: Path) -> WorldModelConfig:
    """Return the configuration that config.json of a run folder describes.

    Raises:
        ValueError: The file is missing, or describes another training.
    """
    path = run / 'config.json'
    try:
        fields = json.loads(path.read_text())['world_model']
        context = ContextConfig(**fields.pop('context', {}))
        distill = DistillConfig(**fields.pop('distill', {}))
        return WorldModelConfig(**fields, context=context, distill=distill)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: not the description of a world model: {error!r}') from None
