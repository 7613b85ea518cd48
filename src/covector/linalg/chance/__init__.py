"""Chance levels: how likely a cosine, a gain or a whole table is when directions mean nothing.

Exact laws (`tail`, `threshold`), random directions, frames and rotations, nulls of maxima and gains, the three
questions `p_dir`, `p_cov`, `p_svd`, and corrections for many tests. Every random function takes a seed and gives
the same draws whoever shares the work. Everywhere d is the dimension in which the direction lives: d_model, or
d_model − 1 in a frame that removes the mean.
"""

from covector.linalg.chance.beta import log_tail, quantile, tail, threshold
from covector.linalg.chance.estimate import Estimate, monte_carlo_p
from covector.linalg.chance.families import bh, by, holm, max_t, simes
from covector.linalg.chance.haar import haar_directions, haar_frame, rotate_inside, rotation
from covector.linalg.chance.laws import Haar, Matched, covariance_root, matched_directions
from covector.linalg.chance.maxima import (
    expected_max,
    expected_max_of_basis,
    max_in_frame,
    median_max,
    null_max_of_frame,
    null_maxima,
)
from covector.linalg.chance.questions import p_cov, p_dir, p_dir_exact, p_svd, p_svd_exact
from covector.linalg.chance.rotations import null_gain, rotation_null

__all__ = [
    "Estimate",
    "Haar",
    "Matched",
    "bh",
    "by",
    "covariance_root",
    "expected_max",
    "expected_max_of_basis",
    "haar_directions",
    "haar_frame",
    "holm",
    "log_tail",
    "matched_directions",
    "max_in_frame",
    "max_t",
    "median_max",
    "monte_carlo_p",
    "null_gain",
    "null_max_of_frame",
    "null_maxima",
    "p_cov",
    "p_dir",
    "p_dir_exact",
    "p_svd",
    "p_svd_exact",
    "quantile",
    "rotate_inside",
    "rotation",
    "rotation_null",
    "simes",
    "tail",
    "threshold",
]
