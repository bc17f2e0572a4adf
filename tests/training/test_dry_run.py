"""The dry run's numbers equal the bytes in memory and on disk at small sizes."""

from __future__ import annotations

from dataclasses import replace
import math

import pytest
from small_data import clip_of, save_data, small_objective
import torch

from mirage_model.cli import main
from mirage_model.model.backbone import SIDE_BRANCHES, WAN22_5B
from mirage_model.training import dry_run
from mirage_model.training.config import TrainerConfig, WorldModelConfig
from mirage_model.training.stages import TRAINED, begin_stage, build
from mirage_model.training.trainer import checkpoints, fit

SMALL = WorldModelConfig(batch=1, lora_rank=4, sampler_steps=1, validation_clips=1)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    clips = [clip_of('a', 0, frames=17)]
    return save_data(tmp_path_factory.mktemp('data'), {'train': clips, 'validation': clips})


@pytest.mark.parametrize('stage', TRAINED)
def test_bytes_of_a_checkpoint_are_those_on_disk(data, tmp_path, stage):
    config = replace(SMALL, stage=stage)
    objective = small_objective(data, config)
    needs = dry_run.needs(objective.module, config)
    assert needs.parameters == sum(p.numel() for p in objective.module.parameters())
    assert needs.trained == sum(
        p.numel() for p in objective.module.parameters() if p.requires_grad
    )
    fit(objective, TrainerConfig(steps=1), tmp_path, full_config={})
    names = ('parameters.safetensors', 'optimizer.safetensors')
    sizes = {name: (checkpoints(tmp_path)[-1] / name).stat().st_size for name in names}
    headers = sum(
        8 + int.from_bytes((checkpoints(tmp_path)[-1] / name).read_bytes()[:8], 'little')
        for name in names
    )
    assert sum(sizes.values()) - headers == needs.checkpoint


def saved_bytes(module, run) -> int:
    """Return the bytes that autograd saves in ``run``, without the module's weights."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.filterwarnings('ignore:Mismatch dtype between input and weight')
@pytest.mark.parametrize('gradient_checkpointing', [False, True])
def test_activations_are_those_that_autograd_saves(gradient_checkpointing):
    config = replace(SMALL, gradient_checkpointing=gradient_checkpointing)
    model = build(config).bfloat16()
    backbone, wan = model.backbone, model.backbone.wan.config
    k, h, w = 2, 8, 12
    width = wan.num_attention_heads * wan.attention_head_dim
    tokens = k * h * w // math.prod(wan.patch_size)
    side = torch.randn(1, backbone.side_branch.embedding.in_channels, k, h, w)

    def run():
        model(torch.randn(1, wan.in_channels, k, h, w), torch.zeros(1, k), side)

    measured = saved_bytes(model, run)
    if gradient_checkpointing:
        # hooks see neither what is kept for computing a block anew, nor what that then saves
        blocks = wan.num_layers + len(backbone.side_branch.blocks)
        measured += 2 * width * tokens * blocks
        block, hidden = wan_block(backbone), torch.randn(1, tokens, width, dtype=torch.bfloat16)
        measured += saved_bytes(block, lambda: block(hidden.requires_grad_()))
    estimate = dry_run.activation_bytes(model, config, (k, h, w))
    assert estimate == pytest.approx(measured, rel=0.1)


def wan_block(backbone):
    """Return the first block as a module of its input alone."""
    block, width = backbone.wan.blocks[0], backbone.wan.blocks[0].scale_shift_table.shape[2]

    class Alone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, hidden):
            text = torch.randn(1, 1, width, dtype=hidden.dtype)
            time = torch.randn(1, hidden.shape[1], 6, width, dtype=hidden.dtype)
            return self.block(hidden, text, time.requires_grad_(), None)

    return Alone()


def test_shares_of_gpus_add_up():
    needs = dry_run.Needs(parameters=1000, trained=100, moments=600, block=10, activations=7)
    one, eight = needs.per_gpu(1, outside=20), needs.per_gpu(8, outside=20)
    for name in ('parameters', 'gradients', 'moments'):
        assert one[name] == 8 * eight[name]
    assert one['gathered'] == 200 and eight['gathered'] == 2 * (30 + 20)
    assert one['activations'] == eight['activations'] == 7


def test_five_billion_parameters_need_no_memory():
    config = WorldModelConfig(size='wan22_5b', stage='side_branch', gradient_checkpointing=True)
    with torch.device('meta'):
        model = build(config)
    begin_stage(model, config)
    needs = dry_run.needs(model, config)
    assert all(p.is_meta for p in model.parameters())
    wan = sum(p.numel() for p in model.backbone.wan.parameters())
    assert wan == 4_999_787_712
    assert needs.parameters == wan + needs.trained + WAN22_5B['text_dim']
    assert needs.trained > needs.block * len(SIDE_BRANCHES['wan22_5b'].layers)


@pytest.mark.slow
def test_the_command_prints_a_table(capsys):
    assert main(['train', 'dry-run']) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.split()[:1]]
    for stage in TRAINED:
        assert [row[1] for row in rows if row[0] == stage][1:] == ['1', '8', '32']
    assert 'T ((100 D + 4 F) (L + S) + 46 D)' in printed
