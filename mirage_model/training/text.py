"""Command that writes the embedding of a prompt into a model folder."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mirage_model.io import written_whole
from mirage_model.model.text import embed
from mirage_model.training.config import TextConfig


def main(config: TextConfig) -> int:
    """Embed a prompt, unless the folder has its embedding already.

    Raises:
        ValueError: The encoder's embeddings do not fit the model's transformer.
    """
    path = config.model / 'text' / 'embedding.safetensors'
    metadata = {'prompt': config.prompt, 'encoder': config.encoder.resolve().name}
    if _metadata(path) == metadata:
        print(f'{path} holds this prompt already')
        return 0
    embedding = embed(config.encoder, config.prompt).contiguous()
    transformer = config.model / 'transformer' / 'config.json'
    if transformer.is_file():
        channels = json.loads(transformer.read_text())['text_dim']
        if embedding.shape[1] != channels:
            raise ValueError(
                f'encoder: its embeddings have {embedding.shape[1]} channels, '
                f'{config.model} needs {channels}'
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        save_file({'embedding': embedding}, part, metadata=metadata)
    print(f'wrote {path}')
    return 0


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty if the file is missing or damaged."""
    try:
        with safe_open(path, framework='pt') as file:
            return file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return {}
