"""What is drawn in a figure: its lines, its words, the type that it is set in and the room that it takes."""

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox
from matplotlib.text import Text


def line(axis: Axes, label: str):
    (found,) = lines(axis, label)
    return found


def lines(axis: Axes, label: str):
    return [drawn for drawn in axis.get_lines() if drawn.get_label().startswith(label)]


def words(axis: Axes) -> list[str]:
    """What is written inside a panel."""
    boxes = [box for box in axis.artists if isinstance(box, AnchoredOffsetbox)]
    return [text.get_text() for box in boxes for text in box.findobj(Text) if text.get_text()]


def title(axis: Axes) -> str:
    return axis.get_title(loc="left")


def panels(figure: Figure) -> list[Axes]:
    return [axis for axis in figure.axes if axis.axison]


def check_print(figure: Figure) -> None:
    """As wide as a page, type of 7 points or more, nothing outside, letters in order, every legend entry once."""
    assert figure.get_size_inches()[0] == 6.8
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    whole, renderer = figure.bbox, canvas.get_renderer()
    ticks = {
        tick
        for axis in figure.axes
        for tick in [*axis.get_xticklabels(which="both"), *axis.get_yticklabels(which="both")]
    }
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            assert text.get_fontsize() >= 7, text.get_text()
            if text in ticks:  # those beyond the limits are not drawn
                continue
            box = text.get_window_extent(renderer)
            inside = box.x0 >= -1 and box.x1 <= whole.width + 1 and box.y0 >= -1 and box.y1 <= whole.height + 1
            assert inside, text.get_text()
    for legend in figure.legends:
        labels = [text.get_text() for text in legend.get_texts()]
        assert len(labels) == len(set(labels)) > 0
    letters = [re.search(r"^\(([a-z]+)\)", title(axis), flags=re.M).group(1) for axis in panels(figure)]
    assert letters[0] == "a" and letters == sorted(set(letters), key=lambda letter: (len(letter), letter))


def slopes(drawn) -> np.ndarray:
    """Of a line, between its points, on log axes."""
    return np.diff(np.log(drawn.get_ydata())) / np.diff(np.log(drawn.get_xdata()))
