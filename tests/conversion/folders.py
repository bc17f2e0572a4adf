"""Folders of random weights in the layout of published ones, at tiny size."""

from __future__ import annotations

import json
from pathlib import Path

from published import TINY, Sizes, lora, random_state, side_branch, transformer, umt5, vae
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
import torch
from transformers import PreTrainedTokenizerFast

WORDS = ('<pad>', '</s>', '<unk>', 'a', 'quiet', 'hall', 'with', 'red', 'doors')


def save_wan(folder: Path, sizes: Sizes = TINY, *, pickled: bool = False) -> Path:
    """Write Wan2.2-TI2V-5B's original files."""
    folder.mkdir(parents=True)
    fields = {
        '_class_name': 'WanModel',
        'dim': sizes.dim,
        'eps': 1e-6,
        'ffn_dim': sizes.hidden,
        'freq_dim': sizes.freq,
        'in_dim': sizes.channels,
        'model_type': 'ti2v',
        'num_heads': sizes.heads,
        'num_layers': sizes.layers,
        'out_dim': sizes.channels,
        'text_len': 512,
    }
    (folder / 'config.json').write_text(json.dumps(fields))
    state = random_state(transformer(sizes))
    half = len(state) // 2
    for number, chosen in enumerate((list(state)[:half], list(state)[half:]), start=1):
        shard = {name: state[name] for name in chosen}
        save_file(shard, folder / f'diffusion_pytorch_model-0000{number}-of-00002.safetensors')
    parts = {
        'Wan2.2_VAE': random_state(vae(base=4, decoder_base=4), 1),
        'models_t5_umt5-xxl-enc-bf16': random_state(
            umt5(words=len(WORDS), dim=sizes.text, heads=2, hidden=24, layers=2), 2
        ),
    }
    for stem, part in parts.items():
        if pickled:
            torch.save(part, folder / f'{stem}.pth')
        else:
            save_file(part, folder / f'{stem}.safetensors')
    save_tokenizer(folder / 'google' / 'umt5-xxl')
    return folder


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token='<unk>')
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token='<pad>', eos_token='</s>', unk_token='<unk>'
    ).save_pretrained(folder)


def save_branch(folder: Path, *, blocks: int, sizes: Sizes = TINY, rank: int = 3) -> Path:
    """Write vace.safetensors and lora.safetensors as the paper's training code does."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_state(side_branch(sizes, blocks), 3), folder / 'vace.safetensors')
    save_file(random_state(lora(sizes, rank), 4), folder / 'lora.safetensors')
    return folder
