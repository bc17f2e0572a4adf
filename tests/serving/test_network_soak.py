"""The soak of the network, short and with an engine that answers at once."""

from __future__ import annotations

import pytest

from mirage_model.evaluation.benchmarks.network import INSTANT
from mirage_model.evaluation.benchmarks.network_soak import run_soak
from mirage_model.evaluation.config import NetworkSoakConfig


@pytest.mark.slow
def test_each_request_is_answered_once():
    result = run_soak(NetworkSoakConfig(minutes=0.1), (*INSTANT, '0.01', '30', '0'))
    assert result['sent'] == result['answered'] > 0, result
    assert (result['lost'], result['answered_more_than_once']) == (0, 0)
    assert {'done', 'cancelled'} <= set(result['outcomes']), result
    assert result['calls']['observations'] > 3 and result['sessions_lost'] == 0
