"""The oracle of stochastic rounding: how often it goes up, against the distance."""

import torch
from scipy import stats


def fits_the_distance(distance, up):
    """The p-value that entries went up with the probabilities that make their mean exact.

    A chi-squared test by twentieths of the distance, which nearest rounding fails at once.

    Args:
        distance: From the lower neighbour, as a share of the spacing; float64, any shape.
        up: Whether each entry went to the upper one.
    """
    place = (distance * 20).long().clamp_(max=19).flatten()
    total = torch.bincount(place, minlength=20).double()
    seen = torch.bincount(place, weights=up.flatten().double(), minlength=20)
    expected = torch.bincount(place, weights=distance.flatten(), minlength=20)
    variance = expected * (1 - expected / total)
    statistic = float(((seen - expected) ** 2 / variance).sum())
    return stats.chi2(20).sf(statistic)
