"""Names of tensors in published files, and the names of the same tensors here.

Diffusers knows those of the transformer, `vace.safetensors` and LoRA files. It knows the VAE of
Wan2.1 alone and no UMT5, so these two are renamed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import re

from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch import Tensor

from mirage_model.model.taehv import TinyDecoderConfig

LORA_PREFIXES = (
    'module.',
    'model.',
    'pipe.dit.',
    'dit.',
    'base_model.',
    'diffusion_model.',
    'transformer.',
)
BRANCH_PREFIXES = ('module.', 'model.', 'pipe.vace.', 'vace.')

_VAE = (
    (r'^conv1\.', 'quant_conv.'),
    (r'^conv2\.', 'post_quant_conv.'),
    (r'coder\.conv1\.', 'coder.conv_in.'),
    (r'\.head\.0\.', '.norm_out.'),
    (r'\.head\.2\.', '.conv_out.'),
    (r'\.middle\.0\.', '.mid_block.resnets.0.'),
    (r'\.middle\.1\.', '.mid_block.attentions.0.'),
    (r'\.middle\.2\.', '.mid_block.resnets.1.'),
    (
        r'downsamples\.(\d)\.downsamples\.\d\.(resample|time_conv)',
        r'down_blocks.\1.downsampler.\2',
    ),
    (r'upsamples\.(\d)\.upsamples\.\d\.(resample|time_conv)', r'up_blocks.\1.upsampler.\2'),
    (r'downsamples\.(\d)\.downsamples\.', r'down_blocks.\1.resnets.'),
    (r'upsamples\.(\d)\.upsamples\.', r'up_blocks.\1.resnets.'),
    (r'\.residual\.0\.', '.norm1.'),
    (r'\.residual\.2\.', '.conv1.'),
    (r'\.residual\.3\.', '.norm2.'),
    (r'\.residual\.6\.', '.conv2.'),
    (r'\.shortcut\.', '.conv_shortcut.'),
)
_UMT5 = (
    (r'^token_embedding\.', 'shared.'),
    (r'^norm\.', 'encoder.final_layer_norm.'),
    (r'^blocks\.', 'encoder.block.'),
    (r'\.attn\.(\w)\.', r'.layer.0.SelfAttention.\1.'),
    (r'\.pos_embedding\.embedding\.', '.layer.0.SelfAttention.relative_attention_bias.'),
    (r'\.norm1\.', '.layer.0.layer_norm.'),
    (r'\.norm2\.', '.layer.1.layer_norm.'),
    (r'\.ffn\.gate\.0\.', '.layer.1.DenseReluDense.wi_0.'),
    (r'\.ffn\.fc1\.', '.layer.1.DenseReluDense.wi_1.'),
    (r'\.ffn\.fc2\.', '.layer.1.DenseReluDense.wo.'),
)
_BRANCH = (
    (r'^vace_patch_embedding\.', 'embedding.'),
    (r'^vace_blocks\.0\.proj_in\.', 'proj_in.'),
    (r'^vace_blocks\.(\d+)\.proj_out\.', r'proj_out.\1.'),
    (r'^vace_blocks\.', 'blocks.'),
)
_LORA_PARTS = {
    'lora_A.weight': 'down',
    'lora_B.weight': 'up',
    'lora_down.weight': 'down',
    'lora_up.weight': 'up',
    'alpha': 'alpha',
    'diff': 'weight',
    'diff_b': 'bias',
}


def transformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the transformer's tensors by their names in diffusers."""
    return convert_wan_transformer_to_diffusers(dict(state))


def vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the VAE of Wan2.2 by their names in `AutoencoderKLWan`."""
    return {_renamed(name, _VAE): value for name, value in state.items()}


def umt5(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the text encoder's tensors by their names in `UMT5EncoderModel`."""
    renamed = {_renamed(name, _UMT5): value for name, value in state.items()}
    return {**renamed, 'encoder.embed_tokens.weight': renamed['shared.weight']}


def side_branch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a published side branch by their names in `SideBranch`."""
    named = {_without(name, BRANCH_PREFIXES): value for name, value in state.items()}
    kept = {name: value for name, value in named.items() if name.startswith('vace_')}
    return {_renamed(name, _BRANCH): value for name, value in transformer(kept).items()}


def lora(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a LoRA file by their names in an adapter of `lora`.

    Their product is the change of a weight, so that rank and alpha play no part.

    Raises:
        ValueError: The file changes more than the weights of linear layers.
    """
    named = {}
    for name, value in state.items():
        short = _without(name, LORA_PREFIXES).replace('.default.weight', '.weight')
        named[f'diffusion_model.{short}'] = value
    others = [
        name for name in named if not re.search(r'\.(lora_(A|B|down|up)\.weight|alpha)$', name)
    ]
    if others or not named:
        raise ValueError(
            f'not an adapter of linear layers, it has {sorted(others)[:3]}, lora_A and lora_B are '
            'needed'
        )
    try:
        converted = _convert_non_diffusers_wan_lora_to_diffusers(named)
    except (KeyError, ValueError) as error:
        raise ValueError(f'not an adapter of Wan, {error}') from None
    return {name.removeprefix('transformer.'): value for name, value in converted.items()}


def changes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a LoRA file adds to the transformer's tensors, by their names in diffusers.

    Beside pairs of low rank, with or without alpha, a file may hold whole changes of weights
    (``diff``) and biases (``diff_b``), as adapters that were taken from full weights do.

    Raises:
        ValueError: A tensor is none of these, or half of a pair is missing.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        short = _without(name, LORA_PREFIXES).replace('.default.weight', '.weight')
        part = next((part for part in _LORA_PARTS if short.endswith(f'.{part}')), None)
        if part is None:
            raise ValueError(f'not an adapter of Wan, it has {name}')
        layers.setdefault(short.removesuffix(f'.{part}'), {})[_LORA_PARTS[part]] = value.float()
    added = {}
    for layer, parts in layers.items():
        if ('up' in parts) != ('down' in parts):
            raise ValueError(f'not an adapter of Wan, {layer} has half of a pair')
        if 'up' in parts:
            up, down = parts['up'], parts['down']
            scale = parts['alpha'] / len(down) if 'alpha' in parts else 1.0
            product = scale * (up.flatten(1) @ down.flatten(1))
            added[f'{layer}.weight'] = product.view(len(up), *down.shape[1:])
        if 'weight' in parts:
            added[f'{layer}.weight'] = added.get(f'{layer}.weight', 0) + parts['weight']
        if 'bias' in parts:
            added[f'{layer}.bias'] = parts['bias']
    # names of diffusers itself stay
    return added if any('.attn1.' in name for name in added) else transformer(added)


def decoder(state: Mapping[str, Tensor]) -> tuple[TinyDecoderConfig, dict[str, Tensor]]:
    """Return sizes and tensors of a published TAEHV decoder.

    A file holds weights for twice the frames in all stages. Of a stage that makes one frame, only
    the weights of the later one are used.

    Raises:
        ValueError: A tensor is missing.
    """
    kept = {name: value for name, value in state.items() if name.startswith('decoder.')}
    try:
        channels = kept['decoder.1.weight'].shape[1]
        widths = [kept[f'decoder.{layer}.weight'].shape[0] for layer in (1, 8, 14, 20)]
        patch = round((kept['decoder.22.weight'].shape[0] / 3) ** 0.5)
        config = TinyDecoderConfig(
            channels=channels, widths=(widths[0], widths[1], widths[2], widths[3]), patch=patch
        )
        stages = zip((7, 13, 19), config.widths[:3], config.doubles_time, strict=True)
        for layer, width, doubles in stages:
            name = f'decoder.{layer}.conv.weight'
            kept[name] = kept[name][-width * (2 if doubles else 1) :]
    except (KeyError, IndexError) as error:
        raise ValueError(f'not a decoder of TAEHV, {error} is missing or misshapen') from None
    return config, kept


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _without(name: str, prefixes: Sequence[str]) -> str:
    while prefix := next((p for p in prefixes if name.startswith(p)), ''):
        name = name[len(prefix) :]
    return name
