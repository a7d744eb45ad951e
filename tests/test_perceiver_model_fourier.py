"""Fourier features, against a plain-loop computation of DeepMind's layout."""

import math

import numpy as np
import pytest
import torch

from perceiver_model.fourier import fourier_features, grid_positions, position_table


def plain_features(position, num_bands, max_resolution):
    """[x, y | sin of x's bands, sin of y's bands | cos of x's bands, cos of y's bands]."""
    features = list(position)
    for function in (math.sin, math.cos):
        for coordinate, resolution in zip(position, max_resolution, strict=True):
            for frequency in np.linspace(1, resolution / 2, num_bands):
                features.append(function(math.pi * frequency * coordinate))
    return features


def test_table_has_deepminds_layout():
    table = position_table((3, 5), 4, (3, 5))
    expected = [
        plain_features((row, column), 4, (3, 5))
        for row in np.linspace(-1, 1, 3)
        for column in np.linspace(-1, 1, 5)
    ]
    assert table.shape == (15, 18) and table.dtype == torch.float32
    np.testing.assert_allclose(table.numpy(), expected, rtol=0, atol=1e-6)


def test_the_highest_band_is_accurate_far_from_the_origin():
    table = position_table((50_000,), 64, (50_000,))
    index = 49_998
    expected = plain_features((np.linspace(-1, 1, 50_000)[index],), 64, (50_000,))
    np.testing.assert_allclose(table[index].numpy(), expected, rtol=0, atol=1e-6)


def test_positions_may_have_batch_dimensions():
    positions = torch.rand(2, 7, 3) * 2 - 1
    features = fourier_features(positions, 6, (8, 9, 10))
    assert features.shape == (2, 7, 3 * 13)
    alone = fourier_features(positions[1, 4], 6, (8, 9, 10))
    torch.testing.assert_close(features[1, 4], alone, rtol=0, atol=0)


def test_resolution_sets_the_frequencies_and_not_the_positions():
    fine = position_table((9,), 4, (5,))
    coarse = position_table((5,), 4, (5,))
    torch.testing.assert_close(fine[::2], coarse)


def test_grid_positions_are_row_major_and_reach_both_ends():
    positions = grid_positions((2, 3))
    assert positions.tolist() == [[[-1, -1], [-1, 0], [-1, 1]], [[1, -1], [1, 0], [1, 1]]]


def test_other_numbers_of_coordinates_are_refused():
    with pytest.raises(ValueError, match=r"shape \[4, 2\] have 2 coordinates, but .* has 1"):
        fourier_features(torch.zeros(4, 2), 3, (8,))
