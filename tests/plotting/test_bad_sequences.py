"""The figure of the bad sequences: its lines are level and at rounding, or computed from sigma_2."""

import numpy as np
import pytest

from moe_prompt.plotting.bad_sequences import IDENTIFIABLE, draw_sequences
from moe_prompt.theory.bad_sequences import SEQUENCES
from moe_prompt.theory.families import FAMILIES
from tests.builders.read_figures import check_print
from tests.builders.truths import truth_parts


@pytest.fixture(scope="module")
def figure():
    return draw_sequences()


def solid(axis, markers: bool):
    """Lines with a name, which are families, in their order."""
    named = [line for line in axis.get_lines() if not line.get_label().startswith("_")]
    return [line for line in named if (line.get_linestyle() == "None") == markers]


def test_axes_are_labelled_and_logarithmic(figure):
    check_print(figure)
    left, right = figure.axes[:2]
    assert (left.get_xlabel(), right.get_xlabel()) == ("sample size n", "size t of the split")
    assert {axis.get_xscale() for axis in (left, right)} == {axis.get_yscale() for axis in (left, right)} == {"log"}


def test_the_legends_name_every_family(figure):
    words = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    assert words == [list(SEQUENCES), list(IDENTIFIABLE)]


def test_bad_sequences_are_level_on_the_left_and_at_rounding_on_the_right(figure):
    left, right = figure.axes[:2]
    level = [line.get_ydata() for line in left.get_lines() if line.get_linestyle() == "-"]
    assert len(level) == len(SEQUENCES) and all(np.ptp(y) == 0 for y in level)
    assert np.array(level)[:, 0] == pytest.approx(np.geomspace(0.15, 0.02, len(SEQUENCES)), rel=1e-10)
    drawn = solid(right, markers=False)
    assert [line.get_label() for line in drawn] == list(SEQUENCES)
    assert max(line.get_ydata().max() for line in drawn) < 1e-14


def test_identifiable_families_fall_on_the_left_and_rise_on_the_right(figure):
    left, right = figure.axes[:2]
    falling = [line for line in left.get_lines() if line.get_linestyle() == "--"]
    assert len(falling) == len(IDENTIFIABLE)
    for line in falling:
        n, y = (np.log(values[np.isfinite(line.get_ydata())]) for values in line.get_data())
        assert np.polyfit(n, y, 1)[0] == pytest.approx(-0.5, abs=1e-10)
    points = solid(right, markers=True)
    lines = [line for line in right.get_lines() if line.get_label().startswith("_")]
    assert [line.get_label() for line in points] == list(IDENTIFIABLE) and len(lines) == len(IDENTIFIABLE)
    for name, dots, line in zip(IDENTIFIABLE, points, lines, strict=True):
        model, theta, _ = truth_parts(FAMILIES[name].build())
        t, distance = dots.get_data()
        assert distance[0] == pytest.approx(line.get_ydata()[0], rel=0.05)
        sigma = line.get_ydata() / (t**2 * float(model.unflatten(theta)[0][0].exp()))
        assert sigma == pytest.approx(sigma[0], rel=1e-10) and sigma[0] > 1e-4
