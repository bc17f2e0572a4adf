"""Weights that others published are trained on: the same commands, on an imported model."""

from __future__ import annotations

import json
from pathlib import Path
import sys

import pytest
from small_data import clip_of, save_data
import torch

from mirage_model.cli import main
from mirage_model.io import fingerprint
from mirage_model.model.checkpoint import load_model

sys.path.insert(0, str(Path(__file__).parents[1] / 'conversion'))
from folders import save_branch, save_wan  # noqa: E402


@pytest.mark.slow
def test_imported_model_is_distilled_and_exported(tmp_path, capsys):
    """The adapter and the side branch of official files learn to need one step, with references
    and preceding frames; the transformer stays."""

    def run(words: str) -> None:
        assert main(words.split()) == 0, capsys.readouterr().err

    wan = save_wan(tmp_path / 'wan')
    official = save_branch(tmp_path / 'official', blocks=2)
    model, out = tmp_path / 'model', tmp_path / 'run'
    sizes = '--height 64 --width 96 --chunk-frames 9 --precision float32 --frame-rate 8'
    run(f'import --from official {official} --wan {wan} --out {model} {sizes}')
    imported = load_model(model)
    clips = [clip_of(name, seed, height=64, width=96) for seed, name in enumerate('ab')]
    split = {'train': clips[:1], 'validation': clips[1:]}
    data = save_data(tmp_path / 'data', split, codec=imported.codec, chunk_frames=9)
    prepared = {'codec': fingerprint(model / 'vae')}
    (data / 'latents' / 'prepared.json').write_text(json.dumps(prepared))
    run(
        f'train world-model --from {model} --codec {model}/vae --run {out} --stage adapter '
        f'--latents {data}/latents --clips {data}/clips --lora-targets all --lora-rank 2 '
        '--references 2 --preceding 1 --recall 1 --distill.steps 1 --distill.substeps 2 '
        '--steps 1 --batch 1 --validation-clips 1 --context.imagined 0'
    )
    (checkpoint,) = out.glob('checkpoint-*')
    run(
        f'export --world-model {checkpoint} --vae {model}/vae --perception {model}/perception '
        f'--out {tmp_path}/few --height 64 --width 96 --chunk-frames 9'
    )
    few = load_model(tmp_path / 'few')
    assert few.config.steps == 1
    assert (few.config.references, few.config.preceding) == (2, 1)
    assert few.backbone.side_branch.config == imported.backbone.side_branch.config
    torch.testing.assert_close(few.text, imported.text, atol=1e-3, rtol=1e-3)
    layers = dict(few.backbone.wan.named_parameters())
    assert 'blocks.3.ffn.net.2.lora_A.default.weight' in layers
    name = 'blocks.1.norm2.weight'
    torch.testing.assert_close(
        layers[name], imported.backbone.wan.state_dict()[name], atol=1e-3, rtol=1e-3
    )


def test_spatia_cannot_be_trained(tmp_path, capsys):
    wan = save_wan(tmp_path / 'wan')
    official = save_branch(tmp_path / 'official', blocks=2)
    model = tmp_path / 'model'
    words = f'import --from spatia {official} --wan {wan} --out {model} --height 64 --width 96'
    assert main([*words.split(), '--chunk-frames', '9']) == 0
    words = f'train world-model --from {model} --codec {model}/vae --run {tmp_path}/run'
    words += f' --latents {tmp_path} --clips {tmp_path} --stage adapter'
    assert main(words.split()) == 1
    assert "input 'spatia' cannot be trained" in capsys.readouterr().err
