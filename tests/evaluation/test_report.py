"""The report in a real browser, from disk."""

from __future__ import annotations

from collections.abc import Iterator
import csv
from pathlib import Path
import shutil

from drives import options, wall_bag
from models import save_small_model
import numpy as np
from playwright.sync_api import Page, sync_playwright
import pytest

from mirage_model.evaluation.replay.command import load_engine, run
from mirage_model.evaluation.replay.video import at_most

pytestmark = pytest.mark.slow

FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-sync']


@pytest.fixture(scope='module')
def report(tmp_path_factory) -> Path:
    """Make a report, and copy it into a folder that holds nothing else."""
    folder = tmp_path_factory.mktemp('report')
    wall_bag(folder / 'drive')
    save_small_model(folder / 'model')
    bag_config, config = options(folder)
    out = run(load_engine(config), folder / 'drive', bag_config, config, folder / 'out').out
    (folder / 'alone').mkdir()
    shutil.copy(out / 'report.html', folder / 'alone' / 'report.html')
    return out


@pytest.fixture(scope='module')
def page(report) -> Iterator[Page]:
    browser = shutil.which('chromium') or shutil.which('google-chrome')
    assert browser, 'Chromium is needed: apt-get install chromium'
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        page = chromium.new_page(viewport={'width': 360, 'height': 740})
        page.said, page.asked = [], []  # type: ignore[attr-defined]
        page.on('console', lambda message: page.said.append(f'{message.type}: {message.text}'))
        page.on('pageerror', lambda error: page.said.append(f'error: {error}'))
        page.on('request', lambda request: page.asked.append(request.url))
        page.goto((report.parent / 'alone' / 'report.html').as_uri())
        yield page
        chromium.close()


def test_report_needs_no_other_file(page):
    assert page.said == []
    assert [url for url in page.asked if not url.startswith(('data:', 'file:'))] == []
    assert len([url for url in page.asked if url.startswith('file:')]) == 1
    assert page.title() == 'Replay of drive'


def test_videos_play(page):
    times = page.evaluate(
        """async () => {
            const videos = [...document.querySelectorAll('video')];
            await Promise.all(videos.map(video => video.play()));
            await new Promise(done => setTimeout(done, 1500));
            return videos.map(video => [video.currentTime, video.videoWidth, video.error]);
        }"""
    )
    assert len(times) == 4
    for time, width, error in times:
        assert time > 0 and width > 0 and error is None


def test_report_fits_a_phone(page):
    assert page.evaluate('document.documentElement.scrollWidth') <= 360
    assert page.locator('figure[role=img] svg').count() == 5


def test_report_has_the_values_of_the_tables(report, page):
    for name in ('horizons', 'segments'):
        head = page.locator(f'#{name} thead th').all_inner_texts()
        body = [
            row.locator('td').all_inner_texts() for row in page.locator(f'#{name} tbody tr').all()
        ]
        with (report / f'{name}.csv').open() as file:
            table = list(csv.DictReader(file))
        assert len(body) == len(table) > 0
        for shown, row in zip(body, table):
            for column, text in zip(head, shown):
                if row[column] == '':
                    assert text == '–'
                else:
                    assert float(text) == pytest.approx(float(row[column]), abs=5.1e-4)


def test_report_says_how_often_imagining_won(report, page):
    with (report / 'segments.csv').open() as file:
        rows = list(csv.DictReader(file))
    won = sum(float(row['psnr_all']) > float(row['warp_psnr_all']) for row in rows)
    frames = sum(float(row['better_than_warp']) * int(row['frames']) for row in rows)
    said = page.locator('#against-warp').inner_text()
    assert f'in {won} of {len(rows)} segments' in said
    assert f'in {frames:.0f} of {sum(int(row["frames"]) for row in rows)} frames' in said


def test_videos_of_large_models_are_scaled_down():
    """Four pictures beside each other, 720p each, would be wider than phones play."""
    frames = np.arange(2 * 704 * 1280 * 3, dtype=np.uint8).reshape(2, 704, 1280, 3)
    assert at_most(frames, 360).shape == (2, 198, 360, 3)
    np.testing.assert_array_equal(at_most(np.full_like(frames, 7), 360), 7)
    assert at_most(frames, 1280) is frames
