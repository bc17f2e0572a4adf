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
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

SELF_ATTENTION = r'blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)'


def add_adapter(wan: WanTransformer3DModel, *, rank: int = 64) -> None:
    """Add trainable low-rank adapters that change nothing until they are trained."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=SELF_ATTENTION, lora_dropout=0.0)
    inject_adapter_in_model(config, wan)


def remove_adapter(wan: WanTransformer3DModel) -> None:
    """Put the plain layers back, without what the adapter adds to them."""
    for name, module in list(wan.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition('.')
            setattr(wan.get_submodule(parent), child, module.base_layer)


def merge_adapter(wan: WanTransformer3DModel) -> None:
    """Put plain layers back that do what the adapted ones did, up to rounding."""
    for _, module in list(wan.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
    remove_adapter(wan)


def save_adapter(folder: Path, wan: WanTransformer3DModel, *, rank: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in get_peft_model_state_dict(wan).items()}
    save_file(state, folder / 'adapter.safetensors')
    (folder / 'adapter.json').write_text(json.dumps({'rank': rank}))


def read_json(path: Path) -> dict:
    """Raises ValueError that names a file which is missing or no JSON object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f'{path} is missing') from None
    except ValueError as error:
        raise ValueError(f'{path} is no JSON: {error}') from None
    if not isinstance(value, dict):
        raise ValueError(f'{path} holds no JSON object')
    return value


def load_adapter(folder: Path, wan: WanTransformer3DModel) -> None:
    """Add the adapter that ``folder`` holds. Raises ValueError naming what does not fit."""
    rank = read_json(folder / 'adapter.json').get('rank')
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(
            f'{folder / "adapter.json"}: rank must be a positive number, got {rank!r}'
        )
    try:
        state = load_file(folder / 'adapter.safetensors')
    except (OSError, SafetensorError) as error:
        raise ValueError(f'{folder / "adapter.safetensors"} cannot be read: {error}') from None
    add_adapter(wan, rank=rank)
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
