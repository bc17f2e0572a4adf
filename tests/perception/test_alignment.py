"""Alignment of estimated depth to the memory."""

from __future__ import annotations

from dataclasses import replace

from corner import HEIGHT, WIDTH, estimate_of, readout_of
import torch

from mirage_model.perception.alignment import AlignmentConfig, align


class TestAlignment:
    """A wall five metres away, which the network sees at three."""

    config = AlignmentConfig(min_cells=12, max_scale=2.0)
    truth = torch.full((2, HEIGHT, WIDTH), 5.0)
    cells = torch.full((2, 12, 20), 5.0)
    yes = torch.ones(2, 12, 20, dtype=torch.bool)
    no = torch.zeros(2, 12, 20, dtype=torch.bool)

    def test_takes_the_scale_of_the_memory(self):
        aligned = align(
            estimate_of(self.truth * 0.6), readout_of(self.cells, self.yes, self.yes), self.config
        )
        torch.testing.assert_close(aligned.depth, self.truth)
        assert aligned.scaled.all()

    def test_without_a_memory_nothing_changes(self):
        estimate = estimate_of(self.truth * 0.6)
        assert align(estimate, None, self.config) is estimate
        aligned = align(estimate, readout_of(self.cells, self.no, self.no), self.config)
        torch.testing.assert_close(aligned.depth, estimate.depth)
        assert not aligned.scaled.any()

    def test_needs_enough_cells(self):
        few = self.no.clone()
        few[0, 0, :11] = True
        aligned = align(
            estimate_of(self.truth * 0.6), readout_of(self.cells, few, few), self.config
        )
        assert not aligned.scaled.any()
        few[0, 0, 11] = True
        aligned = align(
            estimate_of(self.truth * 0.6), readout_of(self.cells, few, few), self.config
        )
        assert aligned.scaled.all()

    def test_all_frames_take_one_scale(self):
        first = self.yes.clone()
        first[1] = False
        aligned = align(
            estimate_of(self.truth * 0.6), readout_of(self.cells, first, first), self.config
        )
        torch.testing.assert_close(aligned.depth, self.truth)

    def test_is_robust_to_a_third_of_outliers(self):
        wrong = self.cells.clone()
        wrong[:, :4] = 1.0
        aligned = align(
            estimate_of(self.truth * 0.6), readout_of(wrong, self.yes, self.yes), self.config
        )
        torch.testing.assert_close(aligned.depth, self.truth)

    def test_observed_points_take_precedence(self):
        drifted = self.cells.clone() * 1.3
        observed = self.no.clone()
        observed[:, 0, :12] = True
        drifted[observed] = 5.0
        aligned = align(
            estimate_of(self.truth * 0.6), readout_of(drifted, self.yes, observed), self.config
        )
        torch.testing.assert_close(aligned.depth, self.truth)

    def test_scale_is_bounded(self):
        aligned = align(
            estimate_of(self.truth * 0.1), readout_of(self.cells, self.yes, self.yes), self.config
        )
        torch.testing.assert_close(aligned.depth, self.truth * 0.2)

    def test_sky_dynamic_objects_and_edges_are_ignored(self):
        estimate = estimate_of(self.truth * 0.6)
        depth, sky, moving = estimate.depth.clone(), estimate.sky.clone(), estimate.moving.clone()
        sky[:, :32] = True
        depth[:, :32] = torch.nan
        moving[:, 32:64] = True
        depth[:, 32:64] = 1.0
        depth[:, 64:, 4::8] = 9.0
        depth[:, 64:, 128:] = 3.0
        estimate = replace(estimate, depth=depth, sky=sky, moving=moving)
        aligned = align(estimate, readout_of(self.cells, self.yes, self.yes), self.config)
        torch.testing.assert_close(aligned.depth[:, 64:, 128:], self.truth[:, 64:, 128:])
        assert aligned.depth[:, :32].isnan().all()
