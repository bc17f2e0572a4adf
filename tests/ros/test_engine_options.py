"""The options of an engine mean the same to commands, servers and the node."""

from __future__ import annotations

from dataclasses import fields

import pytest

from mirage_model.cli import parse
from mirage_model.engine.config import EngineOptions
from mirage_model.evaluation.config import ReplayCommand
from mirage_model.serving.config import ServeCommand
from mirage_ros.declaration import from_values
from mirage_ros.parameters import NodeParameters
from mirage_ros.tools.config import DemoCommand, ReplayNodeCommand
from mirage_ros.tools.start_server import model_parameters, serve_words

OPTIONS = [
    EngineOptions(),
    EngineOptions(model_folder='large', labeller='my labeller', refine_cameras=True, float8=True),
    EngineOptions(allow_unscaled_depth=True, compile=True),
    EngineOptions(offload=True),
]
TOPICS = ['bag', '--image', 'i', '--camera-info', 'c', '--pose', 'p']


@pytest.mark.parametrize('options', OPTIONS)
def test_options_reach_every_engine(options):
    words = serve_words(options)
    model = parse(ServeCommand, words, prog='serve').engine
    assert {**vars(model), 'device': None} == {**vars(options), 'device': None}
    assert parse(DemoCommand, words, prog='demo').engine_options == options
    for command in (ReplayCommand, ReplayNodeCommand):
        replay = parse(command, [*TOPICS, *words], prog='replay').replay
        assert replay.engine_options == options
    node = from_values(NodeParameters, model_parameters(options))
    assert node.model.options == options


def test_each_option_has_a_parameter_of_the_node():
    names = {field.name for field in fields(NodeParameters().model)}
    assert {field.name for field in fields(EngineOptions)} - {'model_folder'} <= names
