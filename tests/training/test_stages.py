"""The world model, its configuration, and the command that trains it."""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path
import subprocess
import sys
from typing import get_args

from models import CHANNELS, save_small_model, small_backbone, small_vae
import pytest
from safetensors.torch import save_file
from small_data import clip_of, save_data
import torch

from mirage_model.cli import main, parse
from mirage_model.data.latents import PREPARED, describe_latents
from mirage_model.io import fingerprint
from mirage_model.memory.registry import MEMORIES
from mirage_model.model import backbone
from mirage_model.model.checkpoint import load_model
from mirage_model.model.lora import add_adapter, save_adapter
from mirage_model.training.ablations import VARIANTS
from mirage_model.training.codec import STAGES
from mirage_model.training.config import (
    AblationName,
    CodecStage,
    ContextConfig,
    MemoryName,
    Prediction,
    Size,
    Stage,
    TrainerConfig,
    WorldModelConfig,
    WorldModelTraining,
)
from mirage_model.training.export import trained_config
from mirage_model.training.stages import SIZES, TRAINED, begin_stage, build, start_from
from mirage_model.training.trainer import checkpoints


def test_a_diffusers_backbone_is_loaded_with_fixed_text(tmp_path, small_sizes):
    wan = small_backbone(seed=7).wan
    wan.save_pretrained(tmp_path / 'transformer')
    text = torch.randn(5, 8)
    config = WorldModelConfig(stage='joint')
    model = build(config, backbone=tmp_path / 'transformer', text=text)
    begin_stage(model, config)
    loaded = dict(model.backbone.wan.named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in wan.named_parameters())
    assert 'text' not in dict(model.named_parameters()) and torch.equal(model.text, text)
    assert all(parameter.requires_grad for parameter in model.parameters())
    learned = build(config)
    assert learned.text.requires_grad and learned.text.shape == (1, 8)


def test_training_continues_from_a_model_folder(tmp_path, small_sizes):
    folder = save_small_model(tmp_path / 'model')
    saved = load_model(folder)
    model = build(WorldModelConfig(), seed=3)
    side_branch = {k: v.clone() for k, v in model.backbone.side_branch.named_parameters()}
    start_from(model, folder, words=TRAINED['backbone'])
    assert torch.equal(model.text, saved.text)
    for name, value in model.backbone.side_branch.named_parameters():
        assert torch.equal(value, side_branch[name])
    start_from(model, folder)
    own = dict(model.backbone.named_parameters())
    assert all(torch.equal(own[name], v) for name, v in saved.backbone.named_parameters())
    given = build(WorldModelConfig(), text=torch.zeros(2, saved.text.shape[1]))
    start_from(given, folder)
    assert not given.text.any()
    add_adapter(model.backbone.wan, rank=4)
    with pytest.raises(ValueError, match=r'model: lacks \d+ parameters'):
        start_from(model, folder)
    with pytest.raises(ValueError, match=r'parameters\.safetensors: missing'):
        start_from(model, tmp_path)


def test_adapter_of_a_model_folder_is_merged(tmp_path, small_sizes):
    folder = save_small_model(tmp_path / 'model')
    adapted = load_model(folder).backbone
    add_adapter(adapted.wan, rank=4)
    with torch.no_grad():
        for name, value in adapted.wan.named_parameters():
            if 'lora_' in name:
                value.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    plain = load_model(folder).backbone
    save_adapter(folder / 'side_branch', adapted.wan, rank=4)
    model = build(WorldModelConfig(), seed=3)
    start_from(model, folder)
    latents = torch.randn(1, CHANNELS, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    given = latents, torch.full((1, 2), 500.0), torch.randn(1, *model.text.shape)
    with torch.no_grad():
        outputs = [backbone(*given) for backbone in (plain, model.backbone, adapted)]
    torch.testing.assert_close(outputs[1], outputs[2], atol=1e-4, rtol=1e-4)
    assert (outputs[1] - outputs[0]).abs().max() > 1e-2


def test_first_guess_correction_starts_at_zero(small_sizes):
    model = build(WorldModelConfig(prediction='first_guess'), seed=3)
    latents = torch.randn(1, CHANNELS, 2, 4, 6)
    side = torch.randn(1, CHANNELS + 11, 2, 4, 6)
    velocity = model(latents, torch.full((1, 2), 500.0), side)
    torch.testing.assert_close(velocity, (latents - side[:, :CHANNELS]) / 0.5)
    with pytest.raises(ValueError, match='has no memory and so no first guess'):
        WorldModelConfig(prediction='first_guess', stage='backbone')


def test_parts_that_do_not_fit_are_rejected(tmp_path, small_sizes):
    with pytest.raises(ValueError, match=r'text: shape is \(5, 9\)'):
        build(WorldModelConfig(), text=torch.randn(5, 9))
    with pytest.raises(ValueError, match='missing'):
        build(WorldModelConfig(), backbone=tmp_path)
    for name in ('size', 'stage', 'memory'):
        with pytest.raises((ValueError, TypeError), match=name):
            replace(WorldModelConfig(), **{name: 'other'})


WAN = Path(__file__).parents[2] / 'config' / 'train_wan22_5b.yaml'
FOLDERS = [f'--{name}=there' for name in ('latents', 'clips', 'codec', 'run')]


def parsed(*words: object) -> WorldModelTraining:
    return parse(WorldModelTraining, [*FOLDERS, *map(str, words)], prog='mirage')


def test_options_of_the_large_model_come_from_its_file():
    config = parsed('--config', WAN, '--stage', 'adapter', '--steps', 7)
    assert (config.world_model.size, config.world_model.stage) == ('wan22_5b', 'adapter')
    assert config.world_model.gradient_checkpointing and config.trainer.fsdp
    assert (config.trainer.precision, config.trainer.learning_rate) == ('bf16', 1e-4)
    assert config.trainer.steps == 7
    assert parsed('--config', WAN, '--precision', 'no').trainer.precision == 'no'


def test_options_from_a_file(tmp_path):
    path = tmp_path / 'options.yaml'
    context = {'imagined': 0.5, 'drop': 0}
    given = {'memory': 'none', 'context': context, 'steps': 9, 'learning_rate': 1}
    path.write_text(json.dumps(given))
    config = parsed('--config', path, '--stage', 'adapter')
    assert config.world_model == WorldModelConfig(
        stage='adapter', memory='none', context=ContextConfig(imagined=0.5, drop=0.0)
    )
    assert config.trainer == TrainerConfig(steps=9, learning_rate=1.0, validate_every=1000)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'memroy': 'none'}, 'memroy'),
        ({'context': {'drop': 'much'}}, 'drop'),
        ({'context': {'empty': 0.5}}, 'add up to 1'),
        ({'size': 'huge'}, 'size'),
        ({'batch': True}, 'batch'),
        ({'steps': 0.5}, 'steps'),
        ({'context': 3}, 'context'),
        ({'batch': 0}, 'batch: 0, must be at least 1'),
        ({'context': {'drop': 3.0}}, 'drop: 3.0, must be a share'),
        ({'context': {'empty': -0.1, 'rollout': 0.55}}, 'empty: -0.1, must be a share'),
        ({'context': {'depth_cell': -1}}, 'depth_cell: -1.0, must be 0 or more'),
        ([1], 'must be names with values'),
    ],
)
def test_a_wrong_option_in_a_file_is_named(tmp_path, capsys, given, message):
    path = tmp_path / 'options.yaml'
    path.write_text(json.dumps(given))
    try:
        status = main(['train', 'world-model', *FOLDERS, '--config', str(path)])
    except SystemExit as ended:
        status = ended.code
    assert status in (1, 2)
    assert message in ' '.join(capsys.readouterr().err.split())


def test_literals_of_the_configuration_are_the_names_in_code():
    assert set(get_args(Size)) == set(SIZES)
    assert set(get_args(Stage)) == set(TRAINED)
    assert set(get_args(MemoryName)) == set(MEMORIES)
    assert get_args(Prediction) == get_args(backbone.Prediction)
    assert set(get_args(CodecStage)) == set(STAGES)
    assert set(get_args(AblationName)) == set(VARIANTS)


def train(*words: object) -> int:
    return main(['train', 'world-model', *map(str, words)])


def test_the_command_trains_stage_after_stage(tmp_path, capsys, small_sizes):
    clips = [clip_of('a', 0)]
    data = save_data(tmp_path / 'data', {'train': clips, 'validation': clips})
    small_vae().save_pretrained(tmp_path / 'vae')
    small_backbone(seed=7).wan.save_pretrained(tmp_path / 'transformer')
    save_file({'embedding': torch.randn(5, 8).half()}, tmp_path / 'text.safetensors')
    folders = [
        '--latents',
        data / 'latents',
        '--clips',
        data / 'clips',
        '--codec',
        tmp_path / 'vae',
    ]
    given = ['--backbone', tmp_path / 'transformer', '--text', tmp_path / 'text.safetensors']
    assert train(*folders, *given, '--run', tmp_path / 'none') == 1
    assert 'prepared.json: missing, prepare the clips first' in capsys.readouterr().err
    prepared = data / 'latents' / PREPARED
    prepared.write_text(json.dumps({'codec': 'of another'}))
    assert train(*folders, *given, '--run', tmp_path / 'none') == 1
    assert 'encoded by another codec' in capsys.readouterr().err
    prepared.write_text(json.dumps({'codec': fingerprint(tmp_path / 'vae')}))
    elsewhere = [*folders, *given, '--run', tmp_path / 'none']
    elsewhere[3] = tmp_path
    assert train(*elsewhere) == 1
    assert 'a.safetensors: missing, give the folder of the clips' in capsys.readouterr().err
    start = []
    for stage in ('side_branch', 'adapter'):
        run = tmp_path / stage
        options = ['--run', run, '--stage', stage, '--steps', 2]
        assert train(*folders, *given, *start, *options) == 0
        start = ['--from', checkpoints(run)[-1]]
    described = json.loads((run / 'config.json').read_text())
    assert described['data'] == describe_latents(data / 'latents', tmp_path / 'vae')
    assert described['backbone']['num_layers'] == 3 and described['commit']
    repeated = parsed('--config', run / 'options.yaml')
    assert repeated.world_model == WorldModelConfig(stage='adapter') == trained_config(run)
    assert repeated.trainer == TrainerConfig(steps=2, validate_every=1000)


def test_the_large_model_needs_trained_weights(tmp_path, capsys):
    folders = [f'--{name}={tmp_path}' for name in ('latents', 'clips', 'codec', 'run')]
    assert train('--config', WAN, *folders) == 1
    assert 'not trained from random weights' in capsys.readouterr().err


def test_options_are_checked_without_torch():
    program = (
        'import sys, mirage_model.training.config, mirage_model.data.config, mirage_model.cli; '
    )
    program += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', program], check=False).returncode == 0
