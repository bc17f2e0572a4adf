"""What is built, from which configuration, and the command that trains it."""

from __future__ import annotations

from dataclasses import replace
import json

from models import CHANNELS, save_small_model, small_backbone, small_vae
import pytest
from safetensors.torch import save_file
from small_data import clip_of, save_data
import torch

from mirage_model.data.latents import PREPARED, describe_latents
from mirage_model.io import fingerprint
from mirage_model.model.checkpoint import load_model
from mirage_model.model.lora import add_adapter, save_adapter
from mirage_model.training.configuration import SOURCES, STEPS, configure
from mirage_model.training.context import ContextConfig
from mirage_model.training.model import TRAINED, WorldModelConfig, begin_stage, build, start_from
from mirage_model.training.trainer import TrainerConfig, checkpoints
from mirage_model.training.world_model import main


def test_a_backbone_of_diffusers_is_loaded_and_a_given_text_is_not_trained(tmp_path, small_sizes):
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
    with pytest.raises(ValueError, match=r'model lacks \d+ parameters'):
        start_from(model, folder)
    with pytest.raises(ValueError, match=r'parameters\.safetensors is missing'):
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


def test_what_does_not_fit_is_refused(tmp_path, small_sizes):
    with pytest.raises(ValueError, match=r'text is \(5, 9\)'):
        build(WorldModelConfig(), text=torch.randn(5, 9))
    with pytest.raises(ValueError, match='is missing'):
        build(WorldModelConfig(), backbone=tmp_path)
    for name in ('size', 'stage', 'memory'):
        with pytest.raises(ValueError, match=f'{name} must be one of'):
            replace(WorldModelConfig(), **{name: 'other'})


@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('stage', TRAINED)
def test_configurations_by_name(source, stage):
    model, trainer = configure(source, stage=stage)
    assert (model.size, model.stage, trainer.steps) == (source, stage, STEPS[stage])
    large = source == 'wan22_5b'
    assert trainer.fsdp == model.gradient_checkpointing == large
    assert trainer.precision == ('bf16' if large else 'no')
    model, trainer = configure(source, stage=stage, steps=7, batch=3, precision='no')
    assert (trainer.steps, model.batch, trainer.precision) == (7, 3, 'no')


def test_configurations_from_a_file(tmp_path):
    path = tmp_path / 'config.json'
    given = {
        'world_model': {'memory': 'none', 'context': {'imagined': 0.5, 'drop': 0}},
        'trainer': {'steps': 9, 'learning_rate': 1},
    }
    path.write_text(json.dumps(given))
    model, trainer = configure(str(path), stage='adapter')
    assert model == WorldModelConfig(
        stage='adapter', memory='none', context=ContextConfig(imagined=0.5, drop=0.0)
    )
    assert trainer == TrainerConfig(steps=9, learning_rate=1.0, validate_every=1000)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'world_model': {'memroy': 'none'}}, "no field 'memroy'"),
        ({'world_model': {'context': {'drop': 'much'}}}, 'drop must be float'),
        ({'world_model': {'context': {'empty': 0.5}}}, 'add up to 1'),
        ({'world_model': {'size': 'huge'}}, 'size must be one of'),
        ({'world_model': {'batch': True}}, 'batch must be int'),
        ({'trainer': {'steps': 0.5}}, 'steps must be int'),
        ({'trainer': [1]}, 'trainer must be a JSON object'),
        ({'world_model': []}, 'world_model must be a JSON object'),
        ({'world_model': {'context': 3}}, 'ContextConfig must be a JSON object'),
        ({'worldmodel': {}}, "no part 'worldmodel', there are world_model, trainer"),
        ({'world_model': {'batch': 0}}, 'batch must be at least 1'),
        ({'world_model': {'context': {'drop': 3.0}}}, 'drop must be a share'),
        ({'world_model': {'context': {'empty': -0.1, 'rollout': 0.55}}}, 'empty must be a share'),
        ({'world_model': {'context': {'depth_cell': -1}}}, 'depth_cell must be a deviation'),
        ([], 'no JSON object'),
    ],
)
def test_wrong_configurations_say_what_is_wrong(tmp_path, given, message):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(given))
    with pytest.raises(ValueError, match=message):
        configure(str(path))


def test_a_missing_configuration_says_what_there_is(tmp_path):
    with pytest.raises(ValueError, match='tiny, wan22_5b, or a JSON file'):
        configure(str(tmp_path / 'none.json'))


def run_main(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr('sys.argv', ['world_model', *map(str, arguments)])
    main()


def test_the_command_trains_stage_after_stage(tmp_path, monkeypatch, small_sizes):
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
    with pytest.raises(ValueError, match='prepared.json is missing: prepare the clips first'):
        run_main(monkeypatch, *folders, *given, '--run', tmp_path / 'none')
    prepared = data / 'latents' / PREPARED
    prepared.write_text(json.dumps({'codec': 'of another'}))
    with pytest.raises(ValueError, match='encoded by another codec'):
        run_main(monkeypatch, *folders, *given, '--run', tmp_path / 'none')
    prepared.write_text(json.dumps({'codec': fingerprint(tmp_path / 'vae')}))
    with pytest.raises(ValueError, match='a.safetensors is missing: give the folder of the clips'):
        run_main(monkeypatch, *folders, *given, '--run', tmp_path / 'none', '--clips', tmp_path)
    start = []
    for stage in ('side_branch', 'adapter'):
        run = tmp_path / stage
        run_main(
            monkeypatch, *folders, *given, *start, '--run', run, '--stage', stage, '--steps', 2
        )
        start = ['--from', checkpoints(run)[-1]]
    described = json.loads((run / 'config.json').read_text())
    assert described['data'] == describe_latents(data / 'latents', tmp_path / 'vae')
    assert described['backbone']['num_layers'] == 3 and described['commit']
    # what a run folder says can be given again
    config, trainer = configure(str(run / 'config.json'))
    assert config == WorldModelConfig(stage='adapter')
    assert trainer == TrainerConfig(steps=2, validate_every=1000)


def test_the_large_model_is_not_trained_from_nothing(tmp_path, monkeypatch, capsys):
    folders = [f'--{name}={tmp_path}' for name in ('latents', 'clips', 'codec', 'run')]
    with pytest.raises(SystemExit):
        run_main(monkeypatch, '--config', 'wan22_5b', *folders)
    assert 'not trained from nothing' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_main(monkeypatch, '--stage', 'joint')
    assert 'training needs --latents' in capsys.readouterr().err
