"""Embedding of a prompt.

Models that were trained with text, such as Wan2.2, need it; the embedding of mirage-tiny was
learned.
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
import torch
from torch import Tensor


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
