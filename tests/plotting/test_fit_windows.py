"""The figure of windows on planted errors: a slope per window and statistic, and words made from them."""

import numpy as np
import pandas as pd
import pytest

from moe_prompt.plotting.fit_windows import (
    OURS,
    PUBLISHED,
    STORED,
    WINDOWS,
    draw_windows,
    window_slopes,
    windows_caption,
)
from moe_prompt.plotting.style import write_figure
from tests.builders.read_figures import check_print

SIZES = (100, 316, 1000, 3162, 10_000, 31_623, 100_000)


def planted(slope: float, bend: float = 0.0) -> pd.DataFrame:
    """Losses n^slope, steeper by `bend` beyond n = 1e4, with a few outliers that only the mean sees."""
    rows = []
    for estimator in ("two", "three"):
        for n in SIZES:
            for replicate in range(5):
                loss = n**slope * (n / 1e4) ** (bend if n > 1e4 else 0)
                loss *= 50 if replicate == 0 and n == 100 else 1
                rows.append({"estimator": estimator, "n": n, "voronoi_loss": loss, "start_voronoi_loss": 0.7})
    return pd.DataFrame(rows)


def test_every_window_and_statistic_has_its_slope():
    found = window_slopes(planted(-0.4)[lambda rows: rows.estimator == "three"])
    assert set(found) == {(statistic, window) for statistic in ("mean", "median") for window in WINDOWS}
    for window in WINDOWS:
        assert found["median", window][0] == pytest.approx(-0.4, abs=1e-12)
    assert found["mean", WINDOWS[0]][0] < -0.5  # the outlier at n = 100
    assert found["mean", WINDOWS[1]][0] == pytest.approx(-0.4, abs=1e-12)


def test_caption_has_the_range_of_three_experts():
    frames = planted(-0.4), planted(-0.3, bend=-2.0)
    said = windows_caption(*frames)
    for frame, name in zip(frames, (OURS, PUBLISHED), strict=True):
        slopes = [slope for slope, _ in window_slopes(frame[frame.estimator == "three"]).values()]
        assert f"{min(slopes):.2f} to {max(slopes):.2f} with {name}" in said


def test_figure_has_two_rows_the_stored_slope_and_equal_bytes(tmp_path):
    frames = planted(-0.4), planted(-0.3)
    figure = draw_windows(*frames)
    assert len(figure.axes) == 4
    check_print(figure)
    levels = {round(float(line.get_ydata()[0]), 6) for line in figure.axes[1].lines if len(line.get_ydata()) == 2}
    assert {STORED["two"], -0.5} <= levels
    medians = next(line for line in figure.axes[0].lines if line.get_label() == f"median, {OURS}")
    np.testing.assert_allclose(medians.get_ydata(), np.array(SIZES, float) ** -0.4)
    files = []
    for name, drawn in (("a.png", figure), ("b.png", draw_windows(*frames))):
        write_figure(drawn, tmp_path / name, {"Software": None})
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
