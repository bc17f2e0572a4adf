from __future__ import annotations

import json

from models import CHUNK_FRAMES, HEIGHT, WIDTH, save_small_model
import pytest
from small_data import clip_of, save_data

from mirage_model.cli import main
from mirage_model.clip import load_clip
from mirage_model.io import fingerprint
from mirage_model.model.checkpoint import load_model


@pytest.mark.slow
@pytest.mark.usefixtures('small_sizes')
def test_kit_trains_for_its_time_and_writes_a_model(tmp_path, capsys):
    data = save_data(tmp_path, {'train': [clip_of('a', 0)], 'validation': [clip_of('b', 1)]})
    model = save_small_model(tmp_path / 'small')
    prepared = {'codec': fingerprint(model / 'vae')}
    (data / 'latents' / 'prepared.json').write_text(json.dumps(prepared))
    words = ['train', 'kit', '--out', str(tmp_path / 'kit'), '--model', str(model)]
    words += ['--latents', str(data / 'latents'), '--clips', str(data / 'clips')]
    words += ['--minutes', '0.02', '--probe-steps', '2', '--batch', '1', '--sampler-steps', '1']
    assert main([*words, '--context.imagined', '0.0']) == 0, capsys.readouterr().err
    kit = json.loads((tmp_path / 'kit' / 'kit.json').read_text())
    assert kit['steps'] == kit['step'] == max(1, round(1.2 / kit['step_s']))
    assert kit['memory_psnr_db'] > 0 and not (tmp_path / 'kit' / 'probe').exists()
    assert load_model(tmp_path / 'kit' / 'model').config.name == 'mirage-tiny'


@pytest.mark.slow
@pytest.mark.usefixtures('small_sizes')
def test_kit_records_and_prepares_clips_of_the_models_size(tmp_path, capsys):
    model = save_small_model(tmp_path / 'small')
    words = ['train', 'kit', '--out', str(tmp_path / 'kit'), '--model', str(model)]
    words += ['--recorded', '2', '--minutes', '0.02', '--probe-steps', '2', '--batch', '1']
    words += ['--sampler-steps', '1', '--validation-clips', '1', '--context.imagined', '0.0']
    assert main(words) == 0, capsys.readouterr().err
    clip = load_clip(next((tmp_path / 'kit' / 'clips' / 'train').glob('*.safetensors')))
    assert clip.frames.shape == (65, HEIGHT, WIDTH, 3)
    trained = load_model(tmp_path / 'kit' / 'model')
    assert (trained.config.height, trained.config.width) == (HEIGHT, WIDTH)
    assert trained.config.chunk_frames == CHUNK_FRAMES and trained.config.frame_rate == 8.0
    assert main(words) == 0, 'it continues'


def test_latents_and_clips_belong_together(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(['train', 'kit', '--out', str(tmp_path), '--latents', str(tmp_path)])
    assert 'give both or neither' in capsys.readouterr().err
