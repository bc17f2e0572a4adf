"""Write a prompt's embedding into a model folder.

Models that were trained with text, such as Wan2.2, need it; the embedding of mirage-tiny was learned.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
import torch
from torch import Tensor

from mirage_model.io import written_whole


@torch.no_grad()
def embed(encoder_folder: Path, prompt: str, *, words: int = 512) -> Float[Tensor, 'words dim']:
    """Return the UMT5 embedding of a prompt, zero after the prompt's end, as Wan expects it.

    Args:
        encoder_folder: Holds ``text_encoder/`` and ``tokenizer/`` in diffusers' layout.
        words: Length of the embedding [tokens].

    Raises:
        ValueError: A folder is missing.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel

    for name in ('text_encoder', 'tokenizer'):
        if not (encoder_folder / name).is_dir():
            raise ValueError(f'{encoder_folder / name}: the folder is missing')
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
    metadata = {'prompt': arguments.prompt, 'encoder': arguments.encoder.resolve().name}
    if _metadata(path) == metadata:
        print(f'{path} holds this prompt already')
        return
    embedding = embed(arguments.encoder, arguments.prompt).contiguous()
    transformer = arguments.model / 'transformer' / 'config.json'
    if transformer.is_file():
        wanted = json.loads(transformer.read_text())['text_dim']
        if embedding.shape[1] != wanted:
            parser.error(
                f'encoder: its embeddings have {embedding.shape[1]} channels, {arguments.model} needs {wanted}'
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        save_file({'embedding': embedding}, part, metadata=metadata)
    print(f'wrote {path}')


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty if the file is missing or damaged."""
    try:
        with safe_open(path, framework='pt') as file:
            return file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return {}


if __name__ == '__main__':
    main()
