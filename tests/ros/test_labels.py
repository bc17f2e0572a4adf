"""A model that segments no dynamic objects in the node: `model.without_labels`."""

from __future__ import annotations

from processes import NodeProcess, trajectory
import pytest

SENTENCE = (
    'model: instant does not segment dynamic objects, each passer-by enters the memory; set '
    'model.labeller, or model.without_labels to accept'
)
BLIND = {'segments_dynamic': 0}


@pytest.mark.parametrize(
    ('options', 'warned'),
    [
        ({'instant': BLIND}, True),
        ({'instant': BLIND, 'model__without_labels': 'warn'}, True),
        ({'instant': BLIND, 'model__without_labels': 'accept'}, False),
        ({'model__without_labels': 'reject'}, False),
    ],
)
def test_node_warns_once_and_serves(client, start_node, options, warned):
    node = start_node(**options)
    assert node.says().count(SENTENCE) == int(warned)
    assert ('[WARN]' in node.says()) >= warned
    client.connect()
    client.send_seed()
    client.send('trajectory', trajectory(16))
    client.until(lambda: client.chunks)


def test_node_rejects_a_model_without_labels(tmp_path):
    node = NodeProcess(
        tmp_path / 'node.log', instant=BLIND, ready=SENTENCE, model__without_labels='reject'
    )
    assert node.process.wait(timeout=60) == 1
    assert '[FATAL]' in node.says() and 'is ready' not in node.says()


def test_unknown_action_is_named(tmp_path):
    allowed = "model.without_labels: 'ignore' is not one of"
    node = NodeProcess(tmp_path / 'node.log', ready=allowed, model__without_labels='ignore')
    assert node.process.wait(timeout=60) == 1
