"""Make a model folder of trained parts: ``python -m mirage_model.training.export --help``.

Weights are stored in half precision: what is shipped is what the tests and figures run on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusers import AutoencoderKLWan
from safetensors.torch import load_file
import torch

from mirage_model.adapters import add_adapter, remove_adapter, save_adapter
from mirage_model.checkpoint import ModelConfig, save_model
from mirage_model.codec import load_pretrained
from mirage_model.perception.embedded import load_network, save_network
from mirage_model.sampler import tiny_scheduler
from mirage_model.training.model import build_tiny
from mirage_model.training.trainer import load_parameters

TINY_CONFIG = ModelConfig(
    name='mirage-tiny',
    height=96,
    width=160,
    chunk_frames=17,
    frame_rate=8.0,
    steps=4,
    footprint=3,
)


def export_tiny(out: Path, *, world_model: Path, vae: Path, perception: Path) -> None:
    """Write mirage-tiny from a training checkpoint, a VAE folder and a perception folder."""
    stored = load_file(world_model / 'parameters.safetensors')
    ranks = [len(value) for name, value in stored.items() if 'lora_A' in name]
    model = build_tiny()
    if ranks:
        add_adapter(model.backbone.wan, rank=ranks[0])
    load_parameters(model, world_model)
    if ranks:
        save_adapter(out / 'side_branch', model.backbone.wan, rank=ranks[0])
        remove_adapter(model.backbone.wan)
    codec = load_pretrained(AutoencoderKLWan, vae, torch.float32)
    codec.register_to_config(_name_or_path=TINY_CONFIG.name)  # not the folder it came from
    save_model(
        out,
        config=TINY_CONFIG,
        vae=codec.half(),
        backbone=model.backbone.half(),
        scheduler=tiny_scheduler(),
        text=model.text.detach().half(),
    )
    save_network(out / 'perception', load_network(perception))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--world-model', required=True, type=Path, help='checkpoint folder')
    parser.add_argument('--vae', required=True, type=Path)
    parser.add_argument('--perception', required=True, type=Path)
    parser.add_argument('--out', required=True, type=Path)
    arguments = parser.parse_args()
    with torch.no_grad():
        export_tiny(
            arguments.out,
            world_model=arguments.world_model,
            vae=arguments.vae,
            perception=arguments.perception,
        )
    size = sum(path.stat().st_size for path in arguments.out.rglob('*') if path.is_file())
    print(f'wrote {arguments.out}: {size / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
