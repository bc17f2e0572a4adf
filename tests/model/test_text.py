from __future__ import annotations

import shutil

from models import save_text_encoder
import pytest
from safetensors.torch import load_file
import torch
from transformers import AutoTokenizer, UMT5EncoderModel

from mirage_model.cli import main
from mirage_model.model.text import MAX_KEPT, PromptEncoder, clean


@pytest.fixture(scope='module')
def encoder_folder(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp('wan'))


def embeddings(folder):
    return sorted((folder / 'text' / 'prompts').glob('*.safetensors'))


def test_embedding_equals_the_encoder_and_ends_in_zeros(encoder_folder, tmp_path):
    embedding = PromptEncoder(encoder_folder, tmp_path, tokens=6).embed('a quiet room')
    tokens = AutoTokenizer.from_pretrained(encoder_folder / 'tokenizer')(
        'a quiet room', return_tensors='pt'
    )
    encoder = UMT5EncoderModel.from_pretrained(encoder_folder / 'text_encoder').eval()
    with torch.no_grad():
        hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
    assert embedding.shape == (6, 8) and len(hidden) == 3
    torch.testing.assert_close(embedding[:3], hidden)
    assert (embedding[3:] == 0).all()


def test_stored_embedding_needs_no_encoder(encoder_folder, tmp_path):
    first = PromptEncoder(encoder_folder, tmp_path / 'store', tokens=6)
    embedding = first.embed('a quiet room')
    assert first.embed(' a  quiet\nroom ') is embedding, 'spaces make no other prompt'
    assert len(list((tmp_path / 'store').iterdir())) == 1
    again = PromptEncoder(tmp_path / 'nothing', tmp_path / 'store', tokens=6)
    assert torch.equal(again.embed('a quiet room'), embedding)
    with pytest.raises(ValueError, match="prompt: 'a room' has no embedding in .*text_encoder is"):
        again.embed('a room')


def test_damaged_embedding_is_made_again(encoder_folder, tmp_path):
    embedding = PromptEncoder(encoder_folder, tmp_path, tokens=6).embed('a room')
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-8])
    again = PromptEncoder(encoder_folder, tmp_path, tokens=6)
    assert torch.equal(again.embed('a room'), embedding)
    assert torch.equal(load_file(path)['embedding'], embedding[:2])


def test_few_embeddings_stay_in_memory(encoder_folder, tmp_path):
    encoder = PromptEncoder(encoder_folder, tmp_path, tokens=64)
    first = encoder.embed('')
    assert first is encoder.embed('') and not first.any()
    for count in range(1, MAX_KEPT + 1):
        encoder.embed('a ' * count)
    assert encoder.embed('') is not first and len(encoder._kept) == MAX_KEPT


def test_too_long_prompt_is_rejected(encoder_folder, tmp_path):
    encoder = PromptEncoder(encoder_folder, tmp_path, tokens=6)
    with pytest.raises(ValueError, match='has 7 tokens, at most 6 are allowed'):
        encoder.embed('a ' * 7)


def test_prompts_are_cleaned_as_wan_cleans_them():
    assert clean(' a\tquiet &amp;amp; empty\n room ') == 'a quiet & empty room'


def test_command_stores_the_prompt_in_a_model_folder(encoder_folder, tmp_path, capsys):
    encoder, model = tmp_path / 'encoder', tmp_path / 'model'
    shutil.copytree(encoder_folder, encoder)
    words = ['train', 'text', '--encoder', str(encoder), '--model', str(model), '--prompt']
    assert main([*words, 'a room']) == 0
    own = model / 'text' / 'embedding.safetensors'
    assert load_file(own)['embedding'].shape == (512, 8) and len(embeddings(model)) == 1
    whole = own.read_bytes()
    assert main([*words, 'a quiet room', '--no-own']) == 0
    assert own.read_bytes() == whole and len(embeddings(model)) == 2
    shutil.rmtree(encoder)
    assert main([*words, 'a quiet room']) == 0, 'a stored prompt needs no encoder'
    assert own.read_bytes() != whole
    (model / 'transformer').mkdir()
    (model / 'transformer' / 'config.json').write_text('{"text_dim": 32}')
    whole = own.read_bytes()
    assert main([*words, 'a room']) == 1
    assert 'embeddings have 8 channels' in capsys.readouterr().err
    assert own.read_bytes() == whole
