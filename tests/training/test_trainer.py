from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
import torch
from torch import nn

from mirage_model.training.config import TrainerConfig
from mirage_model.training.trainer import (
    DivergedError,
    Objective,
    StepResult,
    checkpoints,
    fit,
    learning_rate,
)

CONFIG = TrainerConfig(
    steps=12, warmup_steps=3, log_every=5, validate_every=6, checkpoint_every=4, learning_rate=1e-2
)


class Regression(Objective):
    """Objective of a small network on noisy targets, with every source of randomness of a
    training."""

    def __init__(self, fail_at: int | None = None, bad: str = 'loss'):
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.fail_at, self.bad = fail_at, bad

    def step(self, module, rng, generator, step):
        x = torch.from_numpy(rng.normal(size=(16, 3))).float()
        noise = torch.randn(16, 1, generator=generator)
        loss = (module(x) - x.sum(dim=1, keepdim=True) - 0.1 * noise).square().mean()
        if step == self.fail_at:
            # the root has no slope at zero: a finite loss with a gradient that is not
            worse = {'loss': float('nan'), 'gradient': 1 + (0 * loss).sqrt()}
            loss = loss * worse[self.bad]
        return StepResult(loss=loss, logs={'x': float(x.mean())}, names=['clip-a', 'clip-b'])

    def validate(self, writer, step):
        return {'weight': float(self.module[0].weight.detach().sum())}


def parameters_of(run):
    return load_file(checkpoints(run)[-1] / 'parameters.safetensors')


def curve(run: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / 'logs'), size_guidance={'scalars': 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def assert_same_run(one: Path, other: Path) -> None:
    first, second = parameters_of(one), parameters_of(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for tag in ('train/loss', 'train/grad_norm', 'validation/weight'):
        assert curve(one, tag) == curve(other, tag)
    texts = [(run / 'validation.jsonl').read_text() for run in (one, other)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_resumed_run_equals_an_unbroken_one(tmp_path, accumulate):
    config = replace(CONFIG, accumulate=accumulate)
    fit(Regression(), config, tmp_path / 'whole', full_config={})
    with pytest.raises(DivergedError):
        fit(Regression(fail_at=11), config, tmp_path / 'broken', full_config={})
    assert checkpoints(tmp_path / 'broken')[-1].name == 'checkpoint-0000008'
    fit(Regression(), config, tmp_path / 'broken', full_config={})
    assert_same_run(tmp_path / 'whole', tmp_path / 'broken')


def test_frozen_parameters_are_resumed_too(tmp_path):
    """A run that began from another's weights must not go on from random ones."""

    def frozen(weight: float) -> Regression:
        objective = Regression()
        objective.module[0].requires_grad_(False).weight.fill_(weight)
        return objective

    fit(frozen(0.5), replace(CONFIG, steps=4), tmp_path, full_config={})
    resumed = frozen(0.0)
    fit(resumed, CONFIG, tmp_path, full_config={})
    assert (resumed.module[0].weight == 0.5).all()


def test_the_run_folder_has_configuration_and_checkpoints(tmp_path):
    fit(Regression(), CONFIG, tmp_path, full_config={'codec': {'crop': 64}})
    described = json.loads((tmp_path / 'config.json').read_text())
    assert described['trainer']['steps'] == 12 and described['codec'] == {'crop': 64}
    assert described['trainer']['seed'] == 0 and described['commit']
    assert [c.name for c in checkpoints(tmp_path)] == ['checkpoint-0000008', 'checkpoint-0000012']
    assert not list(tmp_path.glob('*.part'))


@pytest.mark.parametrize('bad', ['loss', 'gradient'])
def test_a_diverged_run_names_step_and_clips(tmp_path, bad):
    with pytest.raises(DivergedError, match=rf'{bad} is .*nan.* at step 5.*clip-a'):
        fit(Regression(fail_at=5, bad=bad), CONFIG, tmp_path, full_config={})
    assert all(torch.isfinite(value).all() for value in parameters_of(tmp_path).values())


def test_clips_of_all_batches_of_a_step_are_named(tmp_path):
    objective = Regression(fail_at=5, bad='gradient')
    step, batches = objective.step, []

    def named(*arguments):
        batches.append(f'batch-{len(batches)}')
        return replace(step(*arguments), names=batches[-1:])

    objective.step = named
    with pytest.raises(DivergedError, match='batch-10.*batch-11'):
        fit(objective, replace(CONFIG, accumulate=2), tmp_path, full_config={})


def test_another_configuration_does_not_resume(tmp_path):
    given = {'codec': {'crop': 64}}
    fit(Regression(), CONFIG, tmp_path, full_config=given)
    begun = (tmp_path / 'config.json').read_text()
    for config, described, name in (
        (replace(CONFIG, seed=1), given, 'trainer.seed'),
        (CONFIG, {'codec': {'crop': 32}}, 'codec.crop'),
        (CONFIG, {}, 'codec'),
    ):
        with pytest.raises(ValueError, match=f'began with another {name}, choose another'):
            fit(Regression(), config, tmp_path, full_config=described)
    assert (tmp_path / 'config.json').read_text() == begun
    longer = replace(CONFIG, steps=14, validate_every=7, checkpoint_every=7, log_every=7)
    fit(Regression(), longer, tmp_path, full_config=given)
    assert checkpoints(tmp_path)[-1].name == 'checkpoint-0000014'


@pytest.mark.parametrize(
    ('field', 'value'),
    [('steps', 0), ('accumulate', 0), ('log_every', -1), ('learning_rate', float('nan'))],
)
def test_invalid_numbers_are_rejected(field, value):
    with pytest.raises(ValueError, match=f'{field}: .*must be'):
        replace(CONFIG, **{field: value})


def test_another_model_does_not_resume(tmp_path):
    fit(Regression(), CONFIG, tmp_path, full_config={})
    other = Regression()
    other.module = nn.Linear(3, 1)
    with pytest.raises(ValueError, match='of another model'):
        fit(other, replace(CONFIG, steps=20), tmp_path, full_config={})


KILLED = """
import os, signal
from pathlib import Path
import sys
from mirage_model.training import trainer
from test_trainer import CONFIG, Regression

save_file = trainer.save_file

def cut_short(tensors, path):
    save_file(tensors, path)
    if '0000008' in str(path) and path.name == sys.argv[2]:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

trainer.save_file = cut_short
trainer.fit(Regression(), CONFIG, Path(sys.argv[1]), full_config={})
"""


@pytest.mark.slow
@pytest.mark.parametrize('during', ['parameters.safetensors', 'optimizer.safetensors'])
def test_a_run_killed_while_saving_continues(tmp_path, during):
    here = Path(__file__).parent
    killed = subprocess.run(
        [sys.executable, '-c', KILLED, tmp_path / 'killed', during],
        env={'PYTHONPATH': f'{here}:{here.parents[1]}', 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [c.name for c in checkpoints(tmp_path / 'killed')] == ['checkpoint-0000004']
    assert list((tmp_path / 'killed').glob('*.part'))
    time.sleep(1.0)  # files of logs are in the order of the seconds in their names
    fit(Regression(), CONFIG, tmp_path / 'killed', full_config={})
    fit(Regression(), CONFIG, tmp_path / 'whole', full_config={})
    assert_same_run(tmp_path / 'killed', tmp_path / 'whole')
    assert not list((tmp_path / 'killed').glob('*.part'))


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = [learning_rate(CONFIG, step) for step in range(13)]
    assert rates[0] == pytest.approx(1e-2 / 3) and max(rates) == pytest.approx(1e-2)
    assert rates[12] == pytest.approx(0, abs=1e-9) and rates[3:] == sorted(rates[3:], reverse=True)
