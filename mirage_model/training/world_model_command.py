"""Command that trains a stage of the world model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file
import yaml

from mirage_model.data.latents import describe_latents, read_index
from mirage_model.model.acceleration import compile_blocks
from mirage_model.model.codec import Codec
from mirage_model.model.resampler import load_resampler
from mirage_model.model.text import PromptEncoder
from mirage_model.training.config import WorldModelTraining
from mirage_model.training.distill import DistillObjective
from mirage_model.training.stages import (
    build,
    default_architecture,
    fixed_text,
    read_architecture,
    start_from,
)
from mirage_model.training.trainer import checkpoints, fit, processes
from mirage_model.training.world_model import WorldModelObjective

OWN_TEXT = 'text.safetensors'
"""The model's own text in the run folder, where it is not learned."""


def main(config: WorldModelTraining) -> int:
    """Train a stage from the newest checkpoint of the run folder.

    Raises:
        ValueError: Options do not fit each other, or a file cannot be used.
    """
    train(make_objective(config), config)
    if processes().is_main_process:
        print(f'last checkpoint: {checkpoints(config.run)[-1]}')
    return 0


def make_objective(config: WorldModelTraining) -> WorldModelObjective:
    """Return the objective with its model; raise ValueError as `main` does."""
    settings = config.world_model
    if settings.size != 'tiny' and config.backbone is None and config.start is None:
        raise ValueError(
            f'size: {settings.size} is not trained from random weights, give --backbone or --from'
        )
    if settings.distill.steps and config.start is None:
        raise ValueError('distill.steps: a trained model is needed, give --from')
    if settings.distill.steps and config.trainer.fsdp:
        raise ValueError('fsdp: sharded models cannot be distilled, leave it out')
    codec = Codec.from_folder(config.codec, device=str(processes().device))
    captions = None if config.encoder is None else _captions(config.encoder, config.latents)
    text = None if config.text is None else load_file(config.text)['embedding'].float()
    if text is None and captions is not None:
        text = captions.embed('').float()
    if config.start is None:
        architecture = default_architecture(settings).of_channels(codec.channels)
    else:
        architecture = read_architecture(config.start, settings)
        if text is None:
            text = fixed_text(config.start)
    model = build(
        settings,
        seed=config.trainer.seed,
        backbone=config.backbone,
        text=text,
        architecture=architecture,
    )
    channels = model.backbone.wan.config.in_channels
    if channels != codec.channels:
        raise ValueError(
            f'codec: {config.codec} has {codec.channels} channels, '
            f'the transformer takes {channels}'
        )
    if config.start is not None:
        start_from(model, config.start)
    if config.compile:
        compile_blocks(model.backbone)
    resampler = None if config.resampler is None else load_resampler(config.resampler)
    kind = DistillObjective if settings.distill.steps else WorldModelObjective
    return kind(model, settings, config.latents, config.clips, codec, resampler, captions)


def train(objective: WorldModelObjective, config: WorldModelTraining) -> None:
    """Train an objective in the run folder, from its newest checkpoint."""
    settings, module = config.world_model, objective.module
    data = describe_latents(config.latents, config.codec)
    if processes().is_main_process and not checkpoints(config.run):
        config.run.mkdir(parents=True, exist_ok=True)
        options = asdict(settings) | asdict(config.trainer)
        (config.run / 'options.yaml').write_text(yaml.safe_dump(options, sort_keys=False))
        if 'text' not in dict(module.named_parameters()):
            save_file({'embedding': module.text.cpu().contiguous()}, config.run / OWN_TEXT)
    fit(
        objective,
        config.trainer,
        config.run,
        full_config={
            'world_model': asdict(settings),
            'backbone': dict(module.backbone.wan.config),
            'side_branch': asdict(module.backbone.side_branch.config),
            'data': data,
        },
    )


def _captions(encoder: Path, latents: Path) -> PromptEncoder:
    """Embed the captions of all clips, and return an encoder that reads them.

    The text encoder is freed again, for it is as large as the model.
    """
    store = latents / 'text'
    with processes().main_process_first():
        embedding = PromptEncoder(encoder, store, device=processes().device, max_stored=None)
        indices = [read_index(latents / split) for split in ('train', 'validation')]
        for text in sorted({shard.text for index in indices for shard in index.shards} | {''}):
            embedding.embed(text)
    return PromptEncoder(encoder, store)
