"""Names, shapes and random values of published files, at any size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of Wan's transformer; the defaults are those of Wan2.2-TI2V-5B."""

    dim: int = 3072
    heads: int = 24
    hidden: int = 14336
    layers: int = 30
    text: int = 4096
    freq: int = 256
    channels: int = 48


TINY = Sizes(dim=24, heads=2, hidden=32, layers=4, text=16, freq=16)


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Return random tensors; norms lie around 1, weights have the spread of their inputs."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith(('gamma', 'norm_q.weight', 'norm_k.weight', 'norm3.weight')):
            state[name] = 1 + 0.1 * value
        elif len(shape) > 1:
            state[name] = value / max(1, value[0].numel()) ** 0.5
        else:
            state[name] = 0.1 * value
    return state


def linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f'{name}.weight', (outputs, inputs)
    yield f'{name}.bias', (outputs,)


def block(name: str, s: Sizes) -> Shapes:
    shapes: Shapes = {f'{name}.modulation': (1, 6, s.dim)}
    for attention in ('self_attn', 'cross_attn'):
        for layer in 'qkvo':
            shapes |= linear(f'{name}.{attention}.{layer}', s.dim, s.dim)
        for norm in ('norm_q', 'norm_k'):
            shapes[f'{name}.{attention}.{norm}.weight'] = (s.dim,)
    for part in ('weight', 'bias'):
        shapes[f'{name}.norm3.{part}'] = (s.dim,)
    shapes |= linear(f'{name}.ffn.0', s.hidden, s.dim)
    shapes |= linear(f'{name}.ffn.2', s.dim, s.hidden)
    return shapes


def transformer(s: Sizes) -> Shapes:
    """Return tensors as in Wan's diffusion_pytorch_model."""
    shapes: Shapes = {
        'patch_embedding.weight': (s.dim, s.channels, 1, 2, 2),
        'patch_embedding.bias': (s.dim,),
        'head.modulation': (1, 2, s.dim),
    }
    shapes |= linear('text_embedding.0', s.dim, s.text)
    shapes |= linear('text_embedding.2', s.dim, s.dim)
    shapes |= linear('time_embedding.0', s.dim, s.freq)
    shapes |= linear('time_embedding.2', s.dim, s.dim)
    shapes |= linear('time_projection.1', 6 * s.dim, s.dim)
    shapes |= linear('head.head', 4 * s.channels, s.dim)
    for index in range(s.layers):
        shapes |= block(f'blocks.{index}', s)
    return shapes


def side_branch(s: Sizes, blocks: int) -> Shapes:
    """Return tensors as in vace.safetensors."""
    shapes: Shapes = {
        'vace_patch_embedding.weight': (s.dim, 2 * s.channels, 1, 2, 2),
        'vace_patch_embedding.bias': (s.dim,),
    }
    for index in range(blocks):
        shapes |= block(f'vace_blocks.{index}', s)
        shapes |= linear(f'vace_blocks.{index}.after_proj', s.dim, s.dim)
    shapes |= linear('vace_blocks.0.before_proj', s.dim, s.dim)
    return shapes


def lora(s: Sizes, rank: int) -> Shapes:
    """Return tensors as in lora.safetensors."""
    shapes: Shapes = {}
    sides = {'ffn.0': (s.hidden, s.dim), 'ffn.2': (s.dim, s.hidden)}
    sides |= {f'{a}_attn.{p}': (s.dim, s.dim) for a in ('self', 'cross') for p in 'qkvo'}
    for index in range(s.layers):
        for layer, (outputs, inputs) in sides.items():
            name = f'pipe.dit.blocks.{index}.{layer}'
            shapes[f'{name}.lora_A.weight'] = (rank, inputs)
            shapes[f'{name}.lora_B.weight'] = (outputs, rank)
    return shapes


def conv(
    name: str, outputs: int, inputs: int, *kernel: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f'{name}.weight', (outputs, inputs, *kernel)
    yield f'{name}.bias', (outputs,)


def residual(name: str, inputs: int, outputs: int) -> Shapes:
    shapes: Shapes = {f'{name}.residual.0.gamma': (inputs, 1, 1, 1)}
    shapes |= conv(f'{name}.residual.2', outputs, inputs, 3, 3, 3)
    shapes[f'{name}.residual.3.gamma'] = (outputs, 1, 1, 1)
    shapes |= conv(f'{name}.residual.6', outputs, outputs, 3, 3, 3)
    if inputs != outputs:
        shapes |= conv(f'{name}.shortcut', outputs, inputs, 1, 1, 1)
    return shapes


def middle(name: str, width: int) -> Shapes:
    shapes = residual(f'{name}.middle.0', width, width)
    shapes[f'{name}.middle.1.norm.gamma'] = (width, 1, 1)
    shapes |= conv(f'{name}.middle.1.to_qkv', 3 * width, width, 1, 1)
    shapes |= conv(f'{name}.middle.1.proj', width, width, 1, 1)
    return shapes | residual(f'{name}.middle.2', width, width)


def vae(base: int = 160, decoder_base: int = 256, channels: int = 48) -> Shapes:
    """Return tensors as in Wan2.2_VAE.pth."""
    shapes: Shapes = {}
    shapes |= conv('encoder.conv1', base, 12, 3, 3, 3)
    widths = [base * m for m in (1, 1, 2, 4, 4)]
    for stage in range(4):
        inputs, outputs = widths[stage : stage + 2]
        name = f'encoder.downsamples.{stage}.downsamples'
        shapes |= residual(f'{name}.0', inputs, outputs) | residual(f'{name}.1', outputs, outputs)
        if stage < 3:
            shapes |= conv(f'{name}.2.resample.1', outputs, outputs, 3, 3)
        if stage in (1, 2):
            shapes |= conv(f'{name}.2.time_conv', outputs, outputs, 3, 1, 1)
    shapes |= middle('encoder', widths[-1])
    shapes['encoder.head.0.gamma'] = (widths[-1], 1, 1, 1)
    shapes |= conv('encoder.head.2', 2 * channels, widths[-1], 3, 3, 3)
    shapes |= conv('conv1', 2 * channels, 2 * channels, 1, 1, 1)
    shapes |= conv('conv2', channels, channels, 1, 1, 1)
    widths = [decoder_base * m for m in (4, 4, 4, 2, 1)]
    shapes |= conv('decoder.conv1', widths[0], channels, 3, 3, 3)
    shapes |= middle('decoder', widths[0])
    for stage in range(4):
        inputs, outputs = widths[stage : stage + 2]
        name = f'decoder.upsamples.{stage}.upsamples'
        shapes |= residual(f'{name}.0', inputs, outputs)
        shapes |= residual(f'{name}.1', outputs, outputs) | residual(f'{name}.2', outputs, outputs)
        if stage < 3:
            shapes |= conv(f'{name}.3.resample.1', outputs, outputs, 3, 3)
        if stage < 2:
            shapes |= conv(f'{name}.3.time_conv', 2 * outputs, outputs, 3, 1, 1)
    shapes['decoder.head.0.gamma'] = (widths[-1], 1, 1, 1)
    shapes |= conv('decoder.head.2', 12, widths[-1], 3, 3, 3)
    return shapes


def umt5(
    words: int = 256384, dim: int = 4096, heads: int = 64, hidden: int = 10240, layers: int = 24
) -> Shapes:
    """Return tensors as in models_t5_umt5-xxl-enc-bf16.pth."""
    shapes: Shapes = {'token_embedding.weight': (words, dim), 'norm.weight': (dim,)}
    for index in range(layers):
        name = f'blocks.{index}'
        shapes |= {f'{name}.norm{i}.weight': (dim,) for i in (1, 2)}
        shapes |= {f'{name}.attn.{layer}.weight': (dim, dim) for layer in 'qkvo'}
        shapes[f'{name}.ffn.gate.0.weight'] = shapes[f'{name}.ffn.fc1.weight'] = (hidden, dim)
        shapes[f'{name}.ffn.fc2.weight'] = (dim, hidden)
        shapes[f'{name}.pos_embedding.embedding.weight'] = (32, heads)
    return shapes


def tiny_decoder(
    channels: int = 48, widths: tuple[int, ...] = (256, 128, 64, 64), patch: int = 2
) -> Shapes:
    """Return tensors as in taew2_2's decoder, where all stages hold weights for twice the
    frames."""
    shapes: Shapes = {}
    shapes |= conv('decoder.1', widths[0], channels, 3, 3)
    layer = 3
    for width, after in zip(widths[:-1], widths[1:], strict=True):
        for _ in range(3):
            for part, inputs in ((0, 2 * width), (2, width), (4, width)):
                shapes |= conv(f'decoder.{layer}.conv.{part}', width, inputs, 3, 3)
            layer += 1
        shapes[f'decoder.{layer + 1}.conv.weight'] = (2 * width, width, 1, 1)
        shapes[f'decoder.{layer + 2}.weight'] = (after, width, 3, 3)
        layer += 3
    shapes |= conv(f'decoder.{layer + 1}', 3 * patch**2, widths[-1], 3, 3)
    return shapes
