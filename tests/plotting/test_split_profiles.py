"""The figure of the profiles: a panel per family, a line that is computed, and no line where none is predicted."""

import numpy as np
import pytest

from moe_prompt.plotting.split_profiles import SPLITS, draw_profiles
from moe_prompt.studies.named.over_specified_settings import NOISE, truth
from moe_prompt.theory.families import FAMILIES as TABLE
from moe_prompt.theory.local_geometry import LocalGeometry
from moe_prompt.theory.sigma2 import sigma_2
from tests.builders.read_figures import check_print

SIZES = (1000, 4000)
FAMILIES = ("VPT, B injective", "prefix, non-shared", "linear gate + linear expert")


@pytest.fixture(scope="module")
def figure():
    return draw_profiles({family: truth(TABLE[family], 1, NOISE) for family in FAMILIES}, SIZES)


@pytest.fixture(scope="module")
def axes(figure):
    return figure.axes


def test_fits_the_page(figure):
    check_print(figure)


def lines(axis, style: str):
    return [line for line in axis.get_lines() if line.get_linestyle() == style and len(line.get_xdata())]


def test_every_family_has_a_panel_and_every_n_a_line(axes):
    assert [axis.get_title(loc="left").splitlines()[0] for axis in axes] == list(FAMILIES)
    assert {axis.get_xscale() for axis in axes} == {axis.get_yscale() for axis in axes} == {"log"}
    for axis in axes:
        assert [line.get_label() for line in lines(axis, "-")] == ["n = 1,000", "n = 4,000"]
        assert all(line.get_xdata() == pytest.approx(SPLITS) for line in lines(axis, "-"))


def test_the_prediction_is_from_sigma_2_and_is_drawn_where_there_is_one(axes):
    assert [len(lines(axis, "--")) for axis in axes] == [len(SIZES), 0, 0]
    population = truth(TABLE[FAMILIES[0]], 1, NOISE)
    index = sigma_2(LocalGeometry(population.model, population.theta, population.covariates.nodes(512)), 0).sigma_2
    for n, line in zip(SIZES, lines(axes[0], "--"), strict=True):
        told = n * (float(population.theta[0].exp()) * index * SPLITS**2) ** 2 / (2 * NOISE**2)
        assert line.get_ydata() == pytest.approx(told, rel=1e-6)


def test_the_valley_closes_in_one_panel_only(axes):
    ends = [max(line.get_ydata()[-1] for line in lines(axis, "-")) for axis in axes]
    assert ends[0] > 1000 and max(ends[1:]) < 13
    assert np.all(lines(axes[0], "-")[1].get_ydata()[-2:] > 2 * lines(axes[0], "-")[0].get_ydata()[-2:])
