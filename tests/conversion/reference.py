"""Slow, obvious versions of published networks, on tensors by their published names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f'{name}.weight'].T + state[f'{name}.bias']


def layer_norm(x: Tensor) -> Tensor:
    x = x - x.mean(dim=-1, keepdim=True)
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def rms_norm(state: State, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * state[f'{name}.weight']


def rotate(x: Tensor, places: Tensor) -> Tensor:
    """Rotate pairs of channels of a head; ``places`` holds time, row and column of each token."""
    width = x.shape[-1]
    third = width // 3
    angles = []
    for axis, size in enumerate((width - 2 * third, third, third)):
        rates = 10000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles.append(places[:, axis].double()[:, None] * rates)
    turn = torch.polar(torch.ones(1, dtype=torch.float64), torch.cat(angles, dim=1))
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2).float()


def attention(
    state: State, name: str, x: Tensor, other: Tensor, heads: int, places: Tensor | None
) -> Tensor:
    q = rms_norm(state, f'{name}.norm_q', linear(state, f'{name}.q', x))
    k = rms_norm(state, f'{name}.norm_k', linear(state, f'{name}.k', other))
    v = linear(state, f'{name}.v', other)
    results = []
    for q_head, k_head, v_head in zip(
        q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True
    ):
        if places is not None:
            q_head, k_head = rotate(q_head, places), rotate(k_head, places)
        scores = q_head @ k_head.T / q_head.shape[-1] ** 0.5
        results.append(scores.softmax(dim=-1) @ v_head)
    return linear(state, f'{name}.o', torch.cat(results, dim=-1))


def block(
    state: State, name: str, x: Tensor, text: Tensor, time: Tensor, heads: int, places: Tensor
) -> Tensor:
    shift, scale, gate, shift_2, scale_2, gate_2 = (state[f'{name}.modulation'] + time).unbind(1)
    y = layer_norm(x) * (1 + scale) + shift
    x = x + attention(state, f'{name}.self_attn', y, y, heads, places) * gate
    y = layer_norm(x) * state[f'{name}.norm3.weight'] + state[f'{name}.norm3.bias']
    x = x + attention(state, f'{name}.cross_attn', y, text, heads, None)
    y = layer_norm(x) * (1 + scale_2) + shift_2
    y = F.gelu(linear(state, f'{name}.ffn.0', y), approximate='tanh')
    return x + linear(state, f'{name}.ffn.2', y) * gate_2


def patches(state: State, name: str, x: Tensor) -> Tensor:
    """Return a token for each square of two by two cells; x is (c, frames, h, w)."""
    weight, bias = state[f'{name}.weight'], state[f'{name}.bias']
    tokens = [
        (weight * x[None, :, f : f + 1, r : r + 2, c : c + 2]).sum(dim=(1, 2, 3, 4)) + bias
        for f in range(x.shape[1])
        for r in range(0, x.shape[2], 2)
        for c in range(0, x.shape[3], 2)
    ]
    return torch.stack(tokens)


def velocity(
    state: State,
    latents: Tensor,
    times: list[float],
    text: Tensor,
    *,
    heads: int,
    references: int = 0,
    branch: State | None = None,
    side: Tensor | None = None,
    branch_layers: tuple[int, ...] = (),
) -> Tensor:
    """Return Wan's velocity (c, video frames, h, w) of latents (c, frames, h, w).

    Args:
        times: Timestep of each frame.
        references: Number of leading frames that are references.
        branch: Tensors of the side branch, which sees the frames after the references.
        side: Its input.
    """
    _, frames, height, width = latents.shape
    rows, columns = height // 2, width // 2
    places, token_times = [], []
    for f in range(frames):
        for r in range(rows):
            for c in range(columns):
                is_reference = f < references
                places.append((f - references, r + rows * is_reference, c))
                token_times.append(times[f])
    places, token_times = torch.tensor(places), torch.tensor(token_times)

    half = state['time_embedding.0.weight'].shape[1] // 2
    rates = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = token_times.double()[:, None] * rates
    waves = torch.cat([angles.cos(), angles.sin()], dim=1).float()
    temb = linear(state, 'time_embedding.2', F.silu(linear(state, 'time_embedding.0', waves)))
    time = linear(state, 'time_projection.1', F.silu(temb)).unflatten(1, (6, -1))
    text = F.gelu(linear(state, 'text_embedding.0', text), approximate='tanh')
    text = linear(state, 'text_embedding.2', text)

    x = patches(state, 'patch_embedding', latents)
    skip = references * rows * columns
    hints = {}
    if branch is not None:
        y = linear(
            branch, 'vace_blocks.0.before_proj', patches(branch, 'vace_patch_embedding', side)
        )
        y = y + x[skip:]
        for index, layer in enumerate(branch_layers):
            name = f'vace_blocks.{index}'
            y = block(branch, name, y, text, time[skip:], heads, places[skip:])
            hints[layer] = linear(branch, f'{name}.after_proj', y)
    layers = len({name.split('.')[1] for name in state if name.startswith('blocks.')})
    for layer in range(layers):
        x = block(state, f'blocks.{layer}', x, text, time, heads, places)
        if layer in hints:
            x = torch.cat([x[:skip], x[skip:] + hints[layer]])
    shift, scale = (state['head.modulation'] + temb[:, None]).unbind(1)
    x = linear(state, 'head.head', layer_norm(x) * (1 + scale) + shift)[skip:]
    channels = x.shape[1] // 4
    output = torch.zeros(channels, frames - references, height, width)
    for token, (f, r, c) in zip(x, places[skip:].tolist(), strict=True):
        cells = token.view(2, 2, channels)
        output[:, f, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] = cells.permute(2, 0, 1)
    return output


def schedule(steps: int, shift: float) -> tuple[list[float], list[int]]:
    """Return noise levels and whole timesteps of Wan's sampler, in double precision."""
    first = float(torch.tensor(0.999, dtype=torch.float32))
    levels = []
    for step in range(steps):
        level = first * (1 - step / steps)
        levels.append(shift * level / (1 + (shift - 1) * level))
    return [*levels, 0.0], [int(level * 1000) for level in levels]


def umt5(state: State, tokens: list[int], heads: int) -> Tensor:
    """Return the embedding of tokens without padding."""
    x = state['token_embedding.weight'][tokens]
    layers = len({name.split('.')[1] for name in state if name.startswith('blocks.')})
    for index in range(layers):
        name = f'blocks.{index}'
        y = rms_norm(state, f'{name}.norm1', x)
        q, k, v = (y @ state[f'{name}.attn.{layer}.weight'].T for layer in 'qkv')
        table = state[f'{name}.pos_embedding.embedding.weight']
        bias = torch.stack(
            [
                torch.stack([table[bucket(j - i)] for j in range(len(tokens))])
                for i in range(len(tokens))
            ]
        )
        results = [
            (q_head @ k_head.T + bias[:, :, head]).softmax(dim=-1) @ v_head
            for head, (q_head, k_head, v_head) in enumerate(
                zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True)
            )
        ]
        x = x + torch.cat(results, dim=-1) @ state[f'{name}.attn.o.weight'].T
        y = rms_norm(state, f'{name}.norm2', x)
        gate = F.gelu(y @ state[f'{name}.ffn.gate.0.weight'].T, approximate='tanh')
        y = gate * (y @ state[f'{name}.ffn.fc1.weight'].T)
        x = x + y @ state[f'{name}.ffn.fc2.weight'].T
    return rms_norm(state, 'norm', x)


def bucket(distance: int) -> int:
    """Return T5's bucket of a distance: 32 buckets, half of them for each direction."""
    side = 16 if distance > 0 else 0
    size = abs(distance)
    if size < 8:
        return side + size
    ratio = torch.log(torch.tensor(size / 8.0)) / torch.log(torch.tensor(128 / 8.0))
    return side + min(15, 8 + int(ratio * 8))


def tiny_decoder(state: State, latents: Tensor, doubles: tuple[bool, ...]) -> Tensor:
    """Return frames (n, 3, H, W) of latents (c, k, h, w), a frame at a time."""
    frames = [3 * torch.tanh(frame / 3) for frame in latents.unbind(1)]

    def convolved(name: str, frame: Tensor) -> Tensor:
        weight = state[f'decoder.{name}.weight']
        bias = state.get(f'decoder.{name}.bias')
        return F.conv2d(frame[None], weight, bias, padding=weight.shape[-1] // 2)[0]

    frames = [convolved('1', frame).relu() for frame in frames]
    layer = 3
    for grows in doubles:
        for _ in range(3):
            past, after = torch.zeros_like(frames[0]), []
            for frame in frames:
                y = convolved(f'{layer}.conv.0', torch.cat([frame, past])).relu()
                y = convolved(f'{layer}.conv.4', convolved(f'{layer}.conv.2', y).relu())
                after.append((y + frame).relu())
                past = frame
            frames, layer = after, layer + 1
        grown = []
        for frame in frames:
            large = frame.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
            both = convolved(f'{layer + 1}.conv', large).chunk(2)
            grown += both if grows else both[1:]
        frames = [convolved(str(layer + 2), frame) for frame in grown]
        layer += 3
    frames = [convolved(str(layer + 1), frame.relu()) for frame in frames]
    pixels = torch.stack(frames)
    n, _, h, w = pixels.shape
    image = torch.zeros(n, 3, 2 * h, 2 * w)
    for row in range(2):
        for column in range(2):
            image[:, :, row::2, column::2] = pixels[:, 2 * row + column :: 4]
    return image.clamp(0, 1)[2 ** sum(doubles) - 1 :]
