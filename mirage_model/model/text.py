"""Embed a prompt once: ``python -m mirage_model.model.text --encoder DIR --prompt TEXT --model DIR``.

Needed for models that were trained with text, such as Wan2.2; mirage-tiny's one embedding was learned.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
import torch
from torch import Tensor

from mirage_model.io import written_whole


@torch.no_grad()
def embed(encoder_folder: Path, prompt: str, *, words: int = 512) -> Tensor:
    """The (words, dim) embedding of a prompt by a UMT5 encoder, zero after the prompt's end, as Wan wants it.

    ``encoder_folder`` holds ``text_encoder/`` and ``tokenizer/`` in diffusers' layout.
    Raises ValueError naming a folder that is missing.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel

    for name in ('text_encoder', 'tokenizer'):
        if not (encoder_folder / name).is_dir():
            raise ValueError(f'{encoder_folder / name} is missing')
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder / 'tokenizer', local_files_only=True)
    encoder = UMT5EncoderModel.from_pretrained(
        encoder_folder / 'text_encoder', local_files_only=True, use_safetensors=True
    ).eval()
    tokens = tokenizer(
        prompt, padding='max_length', max_length=words, truncation=True, return_tensors='pt'
    )
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
    return hidden * tokens.attention_mask[0, :, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--encoder', required=True, type=Path)
    parser.add_argument('--prompt', required=True)
    parser.add_argument('--model', required=True, type=Path, help='model folder to write into')
    arguments = parser.parse_args()
    path = arguments.model / 'text' / 'embedding.safetensors'
    about = {'prompt': arguments.prompt, 'encoder': arguments.encoder.resolve().name}
    if _metadata(path) == about:
        print(f'{path} holds this prompt already')
        return
    embedding = embed(arguments.encoder, arguments.prompt).contiguous()
    transformer = arguments.model / 'transformer' / 'config.json'
    if transformer.is_file():
        wanted = json.loads(transformer.read_text())['text_dim']
        if embedding.shape[1] != wanted:
            parser.error(
                f'the encoder gives {embedding.shape[1]} numbers a word, {arguments.model} takes {wanted}'
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        save_file({'embedding': embedding}, part, metadata=about)
    print(f'wrote {path}')


def _metadata(path: Path) -> dict[str, str]:
    """What the embedding at ``path`` is of; nothing for one that is not there or is cut short."""
    try:
        with safe_open(path, framework='pt') as file:
            return file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return {}


if __name__ == '__main__':
    main()
