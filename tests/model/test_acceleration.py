from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys

from models import small_backbone
import pytest
import torch

from mirage_model.model.acceleration import Acceleration, accelerate
from mirage_model.model.backbone import Backbone


def inputs():
    generator = torch.Generator().manual_seed(1)
    backbone = small_backbone()
    channels = backbone.side_branch.embedding.in_channels
    return (
        torch.randn(1, 4, 3, 4, 6, generator=generator),
        torch.tensor([[0.0, 500.0, 500.0]]),
        torch.randn(1, 5, 8, generator=generator),
        torch.randn(1, channels, 3, 4, 6, generator=generator),
    )


def backbone() -> Backbone:
    """Return a backbone whose side branch and head change the output."""
    model = small_backbone().eval().requires_grad_(False)
    torch.manual_seed(2)
    for projection in model.side_branch.proj_out:
        torch.nn.init.normal_(projection.weight, std=0.3)
    return model


def accelerated(**settings) -> Backbone:
    model = backbone()
    accelerate(model, Acceleration(**settings), device='cpu', dtype=torch.float32)
    return model


def test_offloaded_backbone_gives_equal_velocities():
    assert torch.equal(accelerated(offload=True)(*inputs()), backbone()(*inputs()))


@pytest.mark.slow
def test_compiled_backbone_gives_near_equal_velocities():
    """The comparison runs in a process of its own, since checks of shapes cannot be compiled."""
    code = 'from test_acceleration import compiled_error; print(compiled_error())'
    paths = (Path(__file__).parent, Path(__file__).parents[1], Path(__file__).parents[2])
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


def compiled_error() -> float:
    difference = accelerated(compile=True)(*inputs()) - backbone()(*inputs())
    return float(difference.abs().max())


def test_float8_equals_rounded_weights():
    """The oracle rounds the weights of the linear layers to float8 beforehand."""
    rounded = backbone()
    blocks = (*rounded.wan.blocks, *rounded.side_branch.blocks)
    layers = [m for block in blocks for m in block.modules() if isinstance(m, torch.nn.Linear)]
    side = rounded.side_branch
    layers += [rounded.wan.proj_out, side.proj_in, *side.proj_out]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.copy_(parameter.to(torch.float8_e4m3fn).float())
    model = accelerated(float8=True)
    assert model.wan.blocks[0].ffn.net[0].proj.weight.dtype == torch.float8_e4m3fn
    assert model.wan.patch_embedding.weight.dtype == torch.float32
    torch.testing.assert_close(model(*inputs()), rounded(*inputs()), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(rounded(*inputs()), backbone()(*inputs()), atol=1e-5)


def test_compile_and_offload_exclude_each_other():
    with pytest.raises(ValueError, match='offload: true is not allowed with compile'):
        Acceleration(compile=True, offload=True)
