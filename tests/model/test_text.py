from __future__ import annotations

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
import torch
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from mirage_model.cli import main
from mirage_model.model.text import embed


@pytest.fixture(scope='module')
def encoder_folder(tmp_path_factory):
    """A UMT5 encoder of the layout that Wan ships, tiny and random."""
    folder = tmp_path_factory.mktemp('wan')
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(folder / 'text_encoder')
    words = {'<pad>': 0, '</s>': 1, '<unk>': 2, 'a': 3, 'quiet': 4, 'room': 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token='<pad>', eos_token='</s>', unk_token='<unk>'
    ).save_pretrained(folder / 'tokenizer')
    return folder


def test_embedding_is_padded_with_zeros(encoder_folder):
    embedding = embed(encoder_folder, 'a quiet room', words=6)
    assert embedding.shape == (6, 8)
    assert (embedding[:3] != 0).any() and (embedding[3:] == 0).all()
    assert torch.equal(embedding, embed(encoder_folder, 'a quiet room', words=6))
    assert not torch.equal(embedding, embed(encoder_folder, 'a a room', words=6))


def test_a_missing_encoder_is_named(tmp_path):
    with pytest.raises(ValueError, match='text_encoder: the folder is missing'):
        embed(tmp_path, 'a room')


def test_the_command_stores_it_in_a_model_folder(encoder_folder, tmp_path, capsys):
    words = [
        'train',
        'text',
        '--encoder',
        str(encoder_folder),
        '--prompt',
        'a room',
        '--model',
        str(tmp_path),
    ]
    assert main(words) == 0
    assert load_file(tmp_path / 'text' / 'embedding.safetensors')['embedding'].shape == (512, 8)
    assert main(words) == 0
    assert 'holds this prompt already' in capsys.readouterr().out
    path = tmp_path / 'text' / 'embedding.safetensors'
    path.write_bytes(path.read_bytes()[:-20])
    assert main(words) == 0
    assert load_file(path)['embedding'].shape == (512, 8), 'a damaged file is written again'
    whole = path.read_bytes()
    (tmp_path / 'transformer').mkdir()
    (tmp_path / 'transformer' / 'config.json').write_text('{"text_dim": 32}')
    assert main([word.replace('a room', 'a hall') for word in words]) == 1
    assert 'embeddings have 8 channels' in capsys.readouterr().err
    assert path.read_bytes() == whole
