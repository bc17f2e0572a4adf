from __future__ import annotations

from models import small_vae
from safetensors.torch import save_file
import torch

from mirage_model.checkpoint import load_model
from mirage_model.perception.embedded import Network, NetworkConfig, save_network
from mirage_model.training.export import TINY_CONFIG, export_tiny
from mirage_model.training.world_model import build_tiny


def test_trained_parts_become_a_model_folder(tmp_path):
    trained = build_tiny(seed=3)
    checkpoint = tmp_path / 'checkpoint-0000001'
    checkpoint.mkdir()
    parameters = {name: p.detach().contiguous() for name, p in trained.named_parameters()}
    save_file(parameters, checkpoint / 'parameters.safetensors')
    small_vae().save_pretrained(tmp_path / 'vae')
    save_network(tmp_path / 'perception', Network(NetworkConfig(widths=(8, 8, 8, 8))))
    export_tiny(
        tmp_path / 'model',
        world_model=checkpoint,
        vae=tmp_path / 'vae',
        perception=tmp_path / 'perception',
    )
    loaded = load_model(tmp_path / 'model')
    assert loaded.config == TINY_CONFIG
    for name, parameter in loaded.backbone.named_parameters():
        expected = parameters[f'backbone.{name}'].half().float()
        assert torch.equal(parameter, expected), name
    assert torch.equal(loaded.text, parameters['text'].half().float())
