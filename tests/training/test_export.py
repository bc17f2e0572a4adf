from __future__ import annotations

from models import small_vae
import pytest
from safetensors.torch import save_file
import torch

from mirage_model.adapters import add_adapter
from mirage_model.checkpoint import load_model
from mirage_model.perception.embedded import Network, NetworkConfig, save_network
from mirage_model.training.export import TINY_CONFIG, export_tiny
from mirage_model.training.model import build_tiny


def export(trained, tmp_path):
    """Save a model as a checkpoint, export that, and give its parameters and what is loaded again."""
    checkpoint = tmp_path / 'checkpoint-0000001'
    checkpoint.mkdir()
    parameters = {name: p.detach().contiguous() for name, p in trained.named_parameters()}
    save_file(parameters, checkpoint / 'parameters.safetensors')
    small_vae().save_pretrained(tmp_path / 'vae')
    save_network(tmp_path / 'perception', Network(NetworkConfig(widths=(8, 8, 8, 8))))
    parts = {'vae': tmp_path / 'vae', 'perception': tmp_path / 'perception'}
    export_tiny(tmp_path / 'model', world_model=checkpoint, **parts)
    return parameters, load_model(tmp_path / 'model')


def test_trained_parts_become_a_model_folder(tmp_path):
    parameters, loaded = export(build_tiny(seed=3), tmp_path)
    assert loaded.config == TINY_CONFIG
    texts = [path.read_text() for path in (tmp_path / 'model').rglob('*.json')]
    assert not any(str(tmp_path) in text for text in texts)
    for name, parameter in loaded.backbone.named_parameters():
        assert torch.equal(parameter, parameters[f'backbone.{name}'].half().float()), name
    assert torch.equal(loaded.text, parameters['text'].half().float())


def test_an_adapter_stays_an_adapter(tmp_path):
    trained = build_tiny(seed=3)
    add_adapter(trained.backbone.wan, rank=4)
    parameters, loaded = export(trained, tmp_path)
    assert any('lora_A' in name for name in parameters)
    for name, parameter in loaded.backbone.named_parameters():
        stored = parameters[f'backbone.{name}']
        torch.testing.assert_close(parameter, stored, atol=2e-3, rtol=1e-3)


def test_a_checkpoint_of_a_part_is_refused(tmp_path):
    """Never a random backbone in place of the one that is missing."""
    checkpoint = tmp_path / 'checkpoint-0000001'
    checkpoint.mkdir()
    side = {
        name: p.detach().contiguous()
        for name, p in build_tiny().named_parameters()
        if 'side_branch' in name
    }
    save_file(side, checkpoint / 'parameters.safetensors')
    with pytest.raises(ValueError, match='lacks'):
        export_tiny(tmp_path / 'm', world_model=checkpoint, vae=tmp_path, perception=tmp_path)
