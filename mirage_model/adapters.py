"""LoRA adapters on the backbone's self-attention, and their files. The only user of peft."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import WanTransformer3DModel
from peft import (
    LoraConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file

SELF_ATTENTION = r'blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)'


def add_adapter(wan: WanTransformer3DModel, *, rank: int = 64) -> None:
    """Add trainable low-rank adapters that change nothing until they are trained."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=SELF_ATTENTION, lora_dropout=0.0)
    inject_adapter_in_model(config, wan)


def save_adapter(folder: Path, wan: WanTransformer3DModel, *, rank: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in get_peft_model_state_dict(wan).items()}
    save_file(state, folder / 'adapter.safetensors')
    (folder / 'adapter.json').write_text(json.dumps({'rank': rank}))


def load_adapter(folder: Path, wan: WanTransformer3DModel) -> None:
    """Add the adapter that ``folder`` holds. Raises ValueError naming what does not fit."""
    add_adapter(wan, rank=json.loads((folder / 'adapter.json').read_text())['rank'])
    state = load_file(folder / 'adapter.safetensors')
    own = get_peft_model_state_dict(wan)
    if state.keys() != own.keys():
        wrong = sorted(state.keys() ^ own.keys())[:3]
        raise ValueError(f'{folder / "adapter.safetensors"} does not fit the backbone: {wrong}')
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f'{folder / "adapter.safetensors"}: {name} is {tuple(value.shape)}, '
                f'the backbone needs {tuple(own[name].shape)}'
            )
    set_peft_model_state_dict(wan, state)
