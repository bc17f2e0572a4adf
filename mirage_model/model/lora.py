"""LoRA adapters on the backbone, and their files."""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Literal, TypeAlias

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

from mirage_model.io import read_json

LoraTargets: TypeAlias = Literal['self_attention', 'all']
TARGETS: dict[str, str] = {
    'self_attention': r'blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)',
    'all': r'blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ffn\.net\.(0\.proj|2))',
}
"""Patterns of the adapted layers: as in the paper, and as in its training code."""


def add_adapter(
    wan: WanTransformer3DModel,
    *,
    rank: int = 64,
    targets: LoraTargets | Sequence[str] = 'self_attention',
) -> None:
    """Add trainable low-rank adapters in place; untrained adapters leave the output unchanged.

    Args:
        targets: Key of `TARGETS`, or the names of the layers.
    """
    modules = TARGETS[targets] if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=modules, lora_dropout=0.0)
    inject_adapter_in_model(config, wan)


def remove_adapter(wan: WanTransformer3DModel) -> None:
    """Restore the plain layers in place and discard the adapter."""
    for name, module in list(wan.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition('.')
            setattr(wan.get_submodule(parent), child, module.base_layer)


def merge_adapter(wan: WanTransformer3DModel) -> None:
    """Restore plain layers in place, with the adapter added to their weights."""
    for _, module in list(wan.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
    remove_adapter(wan)


def save_adapter(folder: Path, wan: WanTransformer3DModel, *, rank: int) -> None:
    """Write ``adapter.safetensors`` and ``adapter.json`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in get_peft_model_state_dict(wan).items()}
    save_file(state, folder / 'adapter.safetensors')
    (folder / 'adapter.json').write_text(json.dumps({'rank': rank}))


def load_adapter(folder: Path, wan: WanTransformer3DModel) -> None:
    """Add the adapter in a folder, as `save_adapter` writes it, to the backbone in place.

    The names of its tensors tell which layers it adapts.

    Raises:
        ValueError: A file is missing or damaged, or the adapter does not fit the backbone.
    """
    path = folder / 'adapter.safetensors'
    rank = read_json(folder / 'adapter.json').get('rank')
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(
            f'{folder / "adapter.json"}: rank is {rank!r}, a positive integer is needed'
        )
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f'{path}: cannot be read, {error}') from None
    layers = {name.rpartition('.lora_')[0] for name in state}
    known = dict(wan.named_modules())
    if not layers or not all(layer in known for layer in layers):
        names = sorted(layers - known.keys())[:3]
        raise ValueError(f'{path}: does not fit the backbone, no layers are {names}')
    add_adapter(wan, rank=rank, targets=sorted(layers))
    expected = get_peft_model_state_dict(wan)
    if state.keys() != expected.keys():
        names = sorted(state.keys() ^ expected.keys())[:3]
        raise ValueError(f'{path}: does not fit the backbone, missing or unexpected are {names}')
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise ValueError(
                f'{path}: {name} has shape {tuple(value.shape)}, '
                f'the backbone needs {tuple(expected[name].shape)}'
            )
    set_peft_model_state_dict(wan, state)
