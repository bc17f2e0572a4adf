"""Make a model folder of trained parts: ``python -m mirage_model.training.export --help``.

Sizes, splat size, memory and shift are those that the run was trained with. mirage-tiny is stored in half
precision: what is shipped is what the tests and figures run on. The large model is stored in bfloat16, its
VAE as it is.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
import shutil

from jaxtyping import Float
from safetensors.torch import load_file
import torch
from torch import Tensor

from mirage_model.model.checkpoint import PERCEPTIONS, ModelConfig, save_model
from mirage_model.model.codec import BlockAutoencoder, load_autoencoder
from mirage_model.model.lora import add_adapter, remove_adapter, save_adapter
from mirage_model.model.resampler import load_resampler
from mirage_model.model.sampler import tiny_scheduler
from mirage_model.perception.embedded import load_network, save_network
from mirage_model.training.configuration import configure
from mirage_model.training.model import WorldModelConfig, build
from mirage_model.training.trainer import load_parameters

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
"""Of a model of each size, where nothing else is said."""


def export(
    out: Path,
    *,
    world_model: Path | None,
    vae: Path,
    perception: Path,
    resampler: Path | None = None,
    text: Float[Tensor, 'words dim'] | None = None,
    settings: dict[str, object] | None = None,
) -> None:
    """Write a model folder from trained parts.

    Args:
        world_model: Checkpoint in its run folder. None makes a mirage-tiny without a transformer, whose
            prediction is the resampler's first guess.
        vae: VAE folder.
        perception: Perception folder.
        resampler: Resampler folder; needed for the prediction 'first_guess'.
        text: Embedding of the prompt of the training; None if the run learned its own.
        settings: Fields of `ModelConfig` that differ from `SETTINGS` and from the run.

    Raises:
        ValueError: A part is missing or does not fit.
    """
    if world_model is None:
        trained = WorldModelConfig(prediction='first_guess')
        settings = {'steps': 1, **(settings or {})}
    else:
        trained, _ = configure(str(world_model.parent / 'config.json'))
    config = replace(
        SETTINGS[trained.size],
        splat_size=trained.splat_size,
        memory=trained.memory,
        prediction=trained.prediction,
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
            raise ValueError(
                f'{world_model} learned no text: give the one that it was trained with'
            )
        ranks = [len(value) for name, value in stored.items() if 'lora_A' in name]
        model = build(trained, text=text)
        if ranks:
            add_adapter(model.backbone.wan, rank=ranks[0])
        load_parameters(model, world_model)
        if ranks:
            save_adapter(out / 'side_branch', model.backbone.wan, rank=ranks[0])
            remove_adapter(model.backbone.wan)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--world-model', type=Path, help='checkpoint in its run; none: a first guess alone'
    )
    parser.add_argument('--vae', required=True, type=Path)
    parser.add_argument('--perception', required=True, type=Path, help='folder')
    parser.add_argument('--resampler', type=Path, help='folder')
    parser.add_argument('--out', required=True, type=Path)
    parser.add_argument('--text', type=Path, help='embedding.safetensors that it was trained with')
    given = parser.add_argument_group('what differs from the settings of its size')
    given.add_argument('--name')
    for name in ('height', 'width', 'chunk-frames', 'steps'):
        given.add_argument(f'--{name}', type=int)
    given.add_argument('--frame-rate', type=float)
    given.add_argument('--perception-name', dest='kind', choices=tuple(PERCEPTIONS))
    arguments = vars(parser.parse_args())
    names = ('world_model', 'vae', 'perception', 'resampler')
    folders = {name: arguments.pop(name) for name in names}
    out, text = arguments.pop('out'), arguments.pop('text')
    settings = {'perception': arguments.pop('kind'), **arguments}
    settings = {name: value for name, value in settings.items() if value is not None}
    if text is not None:
        text = load_file(text)['embedding'].float()
    with torch.no_grad():
        try:
            export(out, text=text, settings=settings, **folders)
        except ValueError as error:
            parser.error(str(error))
    size = sum(path.stat().st_size for path in out.rglob('*') if path.is_file())
    print(f'wrote {out}: {size / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
