"""Command that writes the embedding of a prompt into a model folder."""

from __future__ import annotations

import json

from safetensors.torch import save_file

from mirage_model.io import written_whole
from mirage_model.model.checkpoint import PROMPTS
from mirage_model.model.text import PromptEncoder
from mirage_model.training.config import TextConfig


def main(config: TextConfig) -> int:
    """Embed a prompt, unless the folder has its embedding already.

    Raises:
        ValueError: The encoder's embeddings do not fit the model's transformer.
    """
    embedding = PromptEncoder(config.encoder, config.model / PROMPTS).embed(config.prompt)
    transformer = config.model / 'transformer' / 'config.json'
    if transformer.is_file():
        channels = json.loads(transformer.read_text())['text_dim']
        if embedding.shape[1] != channels:
            raise ValueError(
                f'encoder: its embeddings have {embedding.shape[1]} channels, '
                f'{config.model} needs {channels}'
            )
    print(f'embedded {config.prompt!r}: {config.model / PROMPTS}')
    if config.own:
        path = config.model / 'text' / 'embedding.safetensors'
        with written_whole(path) as part:
            save_file({'embedding': embedding}, part, metadata={'prompt': config.prompt})
        print(f'wrote {path}')
    return 0
