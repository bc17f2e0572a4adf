from __future__ import annotations

from dataclasses import replace
import json

import pytest
from safetensors.torch import load_file
import torch
from torch import nn

from mirage_model.training.trainer import (
    DivergedError,
    StepResult,
    TrainerConfig,
    checkpoints,
    fit,
    learning_rate,
)

CONFIG = TrainerConfig(
    steps=12, warmup_steps=3, log_every=4, validate_every=6, checkpoint_every=4, learning_rate=1e-2
)


class Regression:
    """A small network after noisy targets: every source of randomness a training has."""

    def __init__(self, fail_at: int | None = None):
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.fail_at = fail_at

    def step(self, module, rng, generator, step):
        x = torch.from_numpy(rng.normal(size=(16, 3))).float()
        noise = torch.randn(16, 1, generator=generator)
        loss = (module(x) - x.sum(dim=1, keepdim=True) - 0.1 * noise).square().mean()
        if step == self.fail_at:
            loss = loss * float('nan')
        return StepResult(loss=loss, logs={'x': float(x.mean())}, names=['clip-a', 'clip-b'])

    def validate(self, writer, step):
        return {'weight': float(self.module[0].weight.detach().sum())}


def parameters_of(run):
    return load_file(checkpoints(run)[-1] / 'parameters.safetensors')


def test_a_run_that_was_stopped_and_resumed_is_the_unbroken_run(tmp_path):
    fit(Regression(), CONFIG, tmp_path / 'whole', full_config={})
    with pytest.raises(DivergedError):
        fit(Regression(fail_at=10), CONFIG, tmp_path / 'broken', full_config={})
    assert checkpoints(tmp_path / 'broken')[-1].name == 'checkpoint-0000008'
    fit(Regression(), CONFIG, tmp_path / 'broken', full_config={})
    whole, resumed = parameters_of(tmp_path / 'whole'), parameters_of(tmp_path / 'broken')
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    lines = [
        (tmp_path / run / 'validation.jsonl').read_text().splitlines()[-1]
        for run in ('whole', 'broken')
    ]
    assert lines[0] == lines[1]


def test_the_run_folder_says_what_was_run(tmp_path):
    fit(Regression(), CONFIG, tmp_path, full_config={'codec': {'crop': 64}})
    described = json.loads((tmp_path / 'config.json').read_text())
    assert described['trainer']['steps'] == 12 and described['codec'] == {'crop': 64}
    assert described['commit']
    assert [c.name for c in checkpoints(tmp_path)] == ['checkpoint-0000008', 'checkpoint-0000012']
    assert not list(tmp_path.glob('*.part'))


def test_a_loss_that_is_not_finite_stops_with_step_and_clips(tmp_path):
    with pytest.raises(DivergedError, match=r'step 5.*clip-a'):
        fit(Regression(fail_at=5), CONFIG, tmp_path, full_config={})


def test_another_model_does_not_resume(tmp_path):
    fit(Regression(), CONFIG, tmp_path, full_config={})
    other = Regression()
    other.module = nn.Linear(3, 1)
    with pytest.raises(ValueError, match='another model'):
        fit(other, replace(CONFIG, steps=20), tmp_path, full_config={})


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = [learning_rate(CONFIG, step) for step in range(13)]
    assert rates[0] == pytest.approx(1e-2 / 3) and max(rates) == pytest.approx(1e-2)
    assert rates[12] == pytest.approx(0, abs=1e-9) and rates[3:] == sorted(rates[3:], reverse=True)
