from __future__ import annotations

from diffusers import WanTransformer3DModel
from models import CHANNELS, small_backbone
import pytest
import torch

from mirage_model.model.backbone import SIDE_BRANCHES, WAN22_5B
from mirage_model.model.lora import add_adapter, load_adapter, save_adapter
from mirage_model.model.side_branch import EXTRA_CHANNELS, SideBranch, SideBranchConfig


def inputs(batch: int = 2):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, CHANNELS, 3, 4, 6, generator=generator)
    times = torch.tensor([[0.0, 700.0, 700.0], [0.0, 300.0, 300.0]])[:batch]
    text = torch.randn(batch, 1, 8, generator=generator)
    side = torch.randn(batch, CHANNELS + EXTRA_CHANNELS, 3, 4, 6, generator=generator)
    return latents, times, text, side


def test_without_side_input_equals_wan_transformer():
    backbone = small_backbone()
    latents, times, text, _ = inputs()
    tokens = times.repeat_interleave(6, dim=1)
    plain = backbone.wan(latents, tokens, text, return_dict=False)[0]
    assert torch.equal(backbone(latents, times, text), plain)


def test_untrained_side_branch_leaves_output_unchanged():
    backbone = small_backbone()
    latents, times, text, side = inputs()
    assert torch.equal(backbone(latents, times, text, side), backbone(latents, times, text))


def test_all_side_branch_parameters_get_gradients():
    backbone = small_backbone()
    latents, times, text, side = inputs()
    optimizer = torch.optim.SGD(backbone.side_branch.parameters(), lr=0.1)
    for _ in range(4):  # layers that are zero let gradients through from the next step on
        optimizer.zero_grad()
        backbone(latents, times, text, side).square().mean().backward()
        optimizer.step()
    for name, parameter in backbone.side_branch.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_head_depends_on_current_and_previous_latent_frame():
    backbone = small_backbone()
    head = backbone.side_branch.head
    latents, times, _, side = inputs()
    state, time = torch.randn(2, 18, 24), torch.randn(2, 3, 24)
    for layer in (head.proj_out, head.gate):
        torch.nn.init.normal_(layer.weight)
    other = side.clone()
    other[:, :, 1] += 1
    with torch.no_grad():
        first, second = (head(latents, s, state, time) for s in (side, other))
    assert torch.equal(first[:, :, 0], second[:, :, 0])
    for frame in (1, 2):
        assert not torch.allclose(first[:, :, frame], second[:, :, frame])


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        backbone = small_backbone()
        backbone.gradient_checkpointing = checkpointing
        latents, times, text, side = inputs()
        backbone(latents, times, text, side).square().mean().backward()
        gradients.append([p.grad for p in backbone.wan.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_published_sizes_on_the_meta_device():
    with torch.device('meta'):
        wan = WanTransformer3DModel(**WAN22_5B)
        side_branch = SideBranch(wan, SIDE_BRANCHES['wan22_5b'])
    assert sum(p.numel() for p in wan.parameters()) == 4_999_787_712
    assert len(side_branch.blocks) == 8
    assert 1.2e9 < sum(p.numel() for p in side_branch.parameters()) < 1.6e9


def test_side_branch_layers_must_exist():
    with pytest.raises(ValueError, match='layers'):
        SideBranch(small_backbone().wan, SideBranchConfig(layers=(0, 3)))


def test_adapter_starts_as_identity_and_round_trips(tmp_path):
    backbone = small_backbone()
    latents, times, text, _ = inputs()
    before = backbone(latents, times, text)
    add_adapter(backbone.wan, rank=4)
    torch.testing.assert_close(backbone(latents, times, text), before)
    adapters = [p for n, p in backbone.named_parameters() if 'lora_' in n]
    assert len(adapters) == 3 * 4 * 2  # layers x projections of the self-attention x two factors
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_()
    save_adapter(tmp_path, backbone.wan, rank=4)
    loaded = small_backbone()
    load_adapter(tmp_path, loaded.wan)
    assert torch.equal(loaded(latents, times, text), backbone(latents, times, text))


def test_adapter_of_another_rank_is_rejected(tmp_path):
    backbone = small_backbone()
    add_adapter(backbone.wan, rank=4)
    save_adapter(tmp_path, backbone.wan, rank=8)
    with pytest.raises(ValueError, match=r'adapter\.safetensors'):
        load_adapter(tmp_path, small_backbone().wan)
