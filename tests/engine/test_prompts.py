"""Prompts and guidance of requests."""

from __future__ import annotations

from pathlib import Path
import shutil

from models import save_small_model, save_text_encoder
import numpy as np
import pytest
from safetensors.torch import save_file
from test_candidates import candidates, same
from test_engine import request, view

from mirage_model.engine.engine import Engine
from mirage_model.interface import InvalidRequest
from mirage_model.model.checkpoint import PROMPTS, load_model_info
from mirage_model.model.text import PromptEncoder


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return save_text_encoder(save_small_model(tmp_path_factory.mktemp('model')))


@pytest.fixture
def engine(folder) -> Engine:
    return seeded(folder)


def seeded(folder: Path | None) -> Engine:
    engine = Engine.from_folder(folder)
    engine.seed(view())
    return engine


def frames(engine: Engine, **changes) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in engine.imagine(request(8, **changes))])


def calls(engine: Engine, **changes) -> int:
    """Return how often a request evaluates the network."""
    count = []
    assert engine.model.backbone is not None
    hook = engine.model.backbone.register_forward_hook(lambda *_: count.append(None))
    frames(engine, **changes)
    hook.remove()
    return len(count)


def test_prompt_equals_a_model_of_that_text(engine, folder, tmp_path):
    prompted = frames(engine, prompt='a quiet room')
    assert not np.array_equal(prompted, frames(engine))
    own = shutil.copytree(folder, tmp_path / 'own')
    embedding = PromptEncoder(folder, tmp_path / 'store').embed('a quiet room')
    save_file({'embedding': embedding}, own / 'text' / 'embedding.safetensors')
    assert np.array_equal(prompted, frames(seeded(own)))


def test_chunks_name_their_prompt(engine):
    (chunk,) = engine.imagine(request(8, prompt='a room'))
    assert chunk.prompt == 'a room'


def test_guidance_of_one_computes_nothing_twice(engine):
    assert calls(engine, prompt='a room') == calls(engine) == 2
    assert calls(engine, prompt='a room', guidance=3.0) == 4


def test_guidance_with_the_prompt_itself_changes_nothing(engine):
    plain = frames(engine, prompt='a room').astype(int)
    equal = frames(engine, prompt='a room', negative_prompt='a room', guidance=50.0)
    assert np.abs(equal - plain).max() <= 1
    guided = frames(engine, prompt='a room', negative_prompt='blurred', guidance=50.0)
    assert not np.array_equal(guided, plain)


def test_candidates_take_prompt_and_guidance(engine):
    words = {'prompt': 'a room', 'negative_prompt': 'blurred', 'guidance': 2.0}
    path = candidates().trajectories[1]
    asked = candidates(trajectories=(path,), seeds=(5,), **words)
    (candidate,) = engine.imagine_candidates(asked)
    (chunk,) = engine.imagine(request(request_id='c', seed=5, **vars(path), **words))
    assert same(candidate.chunks[0], chunk)


def test_guidance_doubles_the_predicted_time_of_steps(engine):
    list(engine.imagine(request(16, prompt='a room')))
    rest, one, two = (
        engine.predicted_seconds(request(16, steps=steps, guidance=guidance))
        for steps, guidance in ((1, 1.0), (3, 1.0), (3, 2.0))
    )
    step = (one - rest) / 2
    assert two == pytest.approx(one + 3 * step)


def test_embeddings_stay_in_the_folder_and_out_of_its_hash(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / 'model', ignore=lambda *_: ['prompts'])
    before = load_model_info(model).sha256
    prompted = frames(seeded(model), prompt='a quiet room')
    assert len(list((model / PROMPTS).iterdir())) == 1
    assert load_model_info(model).sha256 == before
    shutil.rmtree(model / 'text_encoder')
    engine = seeded(model)
    assert np.array_equal(frames(engine, prompt='a quiet room'), prompted)
    with pytest.raises(InvalidRequest, match="prompt: 'a room' has no embedding"):
        next(engine.imagine(request(prompt='a room')))
    with pytest.raises(InvalidRequest, match="prompt: '' has no embedding"):
        list(engine.imagine_candidates(candidates(guidance=2.0)))


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'guidance': 0.5}, 'guidance: 0.5 is not allowed'),
        ({'guidance': float('nan')}, 'guidance: nan is not allowed'),
        ({'negative_prompt': 'blurred'}, 'negative_prompt: it has no effect'),
        ({'prompt': 'a ' * 600}, 'has 600 tokens, at most 512'),
    ],
)
def test_text_that_cannot_be_used_is_rejected(engine, changes, reason):
    with pytest.raises(InvalidRequest, match=reason):
        next(engine.imagine(request(**changes)))
    with pytest.raises(InvalidRequest, match=reason):
        next(engine.imagine_candidates(candidates(**changes)))


def test_model_without_text_rejects_prompts():
    engine = seeded(None)
    if engine.model.prompts is None:
        with pytest.raises(InvalidRequest, match='prompt: mirage-tiny takes no text'):
            next(engine.imagine(request(16, prompt='a room')))
