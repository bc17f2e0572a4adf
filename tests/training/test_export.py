from __future__ import annotations

import json

from models import small_blocks, small_vae
import pytest
from safetensors.torch import save_file
import torch

from mirage_model.model.checkpoint import load_model
from mirage_model.model.codec import Codec
from mirage_model.model.lora import add_adapter
from mirage_model.model.resampler import (
    Resampler,
    load_resampler,
    save_resampler,
)
from mirage_model.perception.embedded import Network, NetworkConfig, save_network
from mirage_model.training.config import WorldModelConfig
from mirage_model.training.export import SETTINGS, export
from mirage_model.training.stages import SIDE_BRANCHES, SIZES, build


def checkpoint_in(run, **configuration):
    """Return an empty checkpoint of a run that was trained with this configuration."""
    checkpoint = run / 'checkpoint-0000001'
    checkpoint.mkdir()
    (run / 'config.json').write_text(json.dumps({'world_model': configuration}))
    return checkpoint


def exported(trained, tmp_path, text=None, settings=None, **configuration):
    """Save a model as a checkpoint and export it; return its parameters and the loaded model."""
    checkpoint = checkpoint_in(tmp_path, **configuration)
    parameters = {name: p.detach().contiguous() for name, p in trained.named_parameters()}
    save_file(parameters, checkpoint / 'parameters.safetensors')
    small_vae().save_pretrained(tmp_path / 'vae')
    save_network(tmp_path / 'perception', Network(NetworkConfig(widths=(8, 8, 8, 8))))
    parts = {'vae': tmp_path / 'vae', 'perception': tmp_path / 'perception'}
    export(tmp_path / 'model', world_model=checkpoint, text=text, settings=settings, **parts)
    return parameters, load_model(tmp_path / 'model')


@pytest.mark.usefixtures('small_sizes')
def test_trained_parts_become_a_model_folder(tmp_path):
    parameters, loaded = exported(build(WorldModelConfig(), seed=3), tmp_path)
    assert loaded.config == SETTINGS['tiny']
    texts = [path.read_text() for path in (tmp_path / 'model').rglob('*.json')]
    assert not any(str(tmp_path) in text for text in texts)
    for name, parameter in loaded.backbone.named_parameters():
        assert torch.equal(parameter, parameters[f'backbone.{name}'].half().float()), name
    assert torch.equal(loaded.text, parameters['text'].half().float())


def test_a_model_without_a_transformer_is_exported(tmp_path):
    small_blocks().save_pretrained(tmp_path / 'vae')
    save_resampler(tmp_path / 'resampler', Resampler.of_codec(Codec(small_blocks()), (8,)))
    save_network(tmp_path / 'perception', Network(NetworkConfig(widths=(8, 8, 8, 8))))
    parts = {name: tmp_path / name for name in ('vae', 'resampler', 'perception')}
    export(tmp_path / 'model', world_model=None, **parts)
    loaded = load_model(tmp_path / 'model')
    assert loaded.backbone is None and loaded.config.prediction == 'first_guess'
    saved = load_resampler(tmp_path / 'resampler').state_dict()
    assert all(torch.equal(saved[k], v) for k, v in loaded.resampler.state_dict().items())
    with pytest.raises(ValueError, match='resampler: the prediction'):
        export(tmp_path / 'm', world_model=None, **{**parts, 'resampler': None})


@pytest.mark.usefixtures('small_sizes')
def test_an_adapter_stays_an_adapter(tmp_path):
    trained = build(WorldModelConfig(), seed=3)
    add_adapter(trained.backbone.wan, rank=4)
    parameters, loaded = exported(trained, tmp_path)
    assert any('lora_A' in name for name in parameters)
    for name, parameter in loaded.backbone.named_parameters():
        stored = parameters[f'backbone.{name}']
        torch.testing.assert_close(parameter, stored, atol=2e-3, rtol=1e-3)


def test_an_incomplete_checkpoint_is_rejected(tmp_path):
    """A random backbone never replaces one that is missing."""
    checkpoint = checkpoint_in(tmp_path)
    side = {
        name: p.detach().contiguous()
        for name, p in build(WorldModelConfig()).named_parameters()
        if 'side_branch' in name
    }
    save_file(side, checkpoint / 'parameters.safetensors')
    parts = {'world_model': checkpoint, 'vae': tmp_path, 'perception': tmp_path}
    with pytest.raises(ValueError, match='learned no text'):
        export(tmp_path / 'm', **parts)
    with pytest.raises(ValueError, match='lacks'):
        export(tmp_path / 'm', text=torch.zeros(2, 32), **parts)


@pytest.mark.usefixtures('small_sizes')
def test_it_runs_as_it_was_trained(tmp_path):
    trained = {'shift': 5.0, 'splat_size': 1, 'memory': 'rgb_cloud'}
    settings = {'name': 'of-my-site', 'frame_rate': 4.0, 'height': 64}
    _, loaded = exported(build(WorldModelConfig()), tmp_path, settings=settings, **trained)
    assert loaded.scheduler.config.flow_shift == 5.0
    assert (loaded.config.splat_size, loaded.config.memory) == (1, 'rgb_cloud')
    assert (loaded.config.name, loaded.config.frame_rate) == ('of-my-site', 4.0)
    assert (loaded.config.height, loaded.config.width) == (64, 160)


def test_the_large_model_becomes_a_folder_too(tmp_path, small_sizes, monkeypatch):
    """The model has small sizes under the large one's name, the text of its prompt, and
    bfloat16."""
    monkeypatch.setitem(SIZES, 'wan22_5b', SIZES['tiny'])
    monkeypatch.setitem(SIDE_BRANCHES, 'wan22_5b', SIDE_BRANCHES['tiny'])
    text = torch.randn(5, SIZES['tiny']['text_dim'])
    trained = build(WorldModelConfig(size='wan22_5b'), seed=3, text=text)
    sizes = {'height': 32, 'width': 48, 'chunk_frames': 17}
    parameters, loaded = exported(trained, tmp_path, text, sizes, size='wan22_5b')
    assert loaded.config.name == 'wan22-5b' and loaded.config.steps == 20
    assert torch.equal(loaded.text, text.bfloat16().float())
    for name, parameter in loaded.backbone.named_parameters():
        assert torch.equal(parameter, parameters[f'backbone.{name}'].bfloat16().float()), name
