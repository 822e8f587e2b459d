"""The tables of a report: accuracies beside published numbers, costs, and the hyper-parameters that were chosen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from moe_prompt.basics.tables import aligned, markdown
from moe_prompt.vision.data.benchmarks import GROUPS, VTAB_GROUPS, VTAB_TASKS
from moe_prompt.vision.report.outcomes import Average, Outcome, Section, groups_of
from moe_prompt.vision.report.published_numbers import (
    DOGS_BY_FRACTION,
    FLAT_MEAN,
    IN21K,
    REPORTED_OF,
    Quoted,
    reference,
)

NOTHING = "-"
OF_GROUPS = "mean of 3 group means"


@dataclass(frozen=True)
class Table:
    """A table of words."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Columns under each other."""
        return f"{self.title}\n{aligned([self.header, *self.rows])}"

    def markdown(self) -> str:
        """A table of GitHub's Markdown."""
        return f"**{self.title}**\n\n{markdown([self.header, *self.rows])}"


def places(section: Section) -> list[tuple[str, Sequence[str]]]:
    """Means of a report: over each group, over the 19 tasks of VTAB, and over the tasks that all methods have."""
    places: list[tuple[str, Sequence[str]]] = [(group, GROUPS[group]) for group in groups_of(section.tasks)]
    if set(section.tasks) & set(VTAB_TASKS):
        places.append((FLAT_MEAN, VTAB_TASKS))
    common = section.common_tasks
    if len(common) > 1 and set(common) != set(VTAB_TASKS):
        places.append((f"mean of the {len(common)} tasks that all have", common))
    return places


class Quotes:
    """Published numbers for the methods of a section, with numbered sources."""

    def __init__(self, section: Section) -> None:
        self.section = section
        self.backbone = REPORTED_OF.get(section.setting.backbone, IN21K)
        self.methods = {cell.label: cell.method for cell in section.cells}
        found = (self.of(label, place) for label in section.labels for place in self.shown(label))
        self.sources = list(dict.fromkeys(str(quote.source) for quote in found if quote))

    def shown(self, label: str) -> list[str]:
        """Tasks and complete means. A published mean beside a mean over fewer tasks would mislead."""
        means = [place for place, tasks in places(self.section) if not self.section.over(label, tasks).missing]
        return [*self.section.tasks, *means]

    def any_of(self, label: str) -> bool:
        """Whether a table shows a number of this method."""
        return any(self.of(label, place) for place in self.shown(label))

    def of(self, label: str, place: str) -> Quoted | None:
        """The number for a task, group or mean: of all training pictures, or of Stanford Dogs' shares."""
        method, share = self.methods[label], self.section.setting.share
        if share == 1:
            return reference(method, place, self.backbone)
        shown = place == "dogs" and self.backbone == IN21K
        return DOGS_BY_FRACTION.get(share, {}).get(method) if shown else None

    def word(self, label: str, place: str) -> str:
        quote = self.of(label, place)
        return NOTHING if quote is None else f"{quote.value:g} [{self.sources.index(str(quote.source)) + 1}]"

    def notes(self) -> list[str]:
        """Sources of the published numbers, and the setting in which they were obtained."""
        if not self.sources:
            return []
        numbered = "; ".join(f"[{number}] {source}" for number, source in enumerate(self.sources, 1))
        return [
            f"Reported numbers are of {self.backbone} at 224 x 224 pixels, 100 epochs; the rows here are of "
            f"{self.section.setting}. Sources: {numbered}."
        ]


def accuracies(section: Section, quotes: Quotes) -> Table:
    """A row for each task and a column for each method, with its published numbers beside it where there are any."""
    labels = section.labels
    quoted = {label: quotes.any_of(label) for label in labels}

    def row(place: str, words: Iterable[str], beside: Iterable[bool]) -> tuple[str, ...]:
        line = [place]
        for label, word, shown in zip(labels, words, beside, strict=True):
            line += [word] + [quotes.word(label, place) if shown else NOTHING] * quoted[label]
        return tuple(line)

    header = ("task", *(name for label in labels for name in [label] + [f"{label}, reported"] * quoted[label]))
    always = [True] * len(labels)
    rows = [row(task, (_of_cell(section.cell(task, label)) for label in labels), always) for task in section.tasks]
    for place, tasks in places(section):
        averages = [section.over(label, tasks) for label in labels]
        whole = [place in quotes.shown(label) for label in labels]
        rows.append(row(place, map(_of_average, averages), whole))
    if all(not section.over(label, VTAB_TASKS).missing for label in labels):
        rows.append(row(OF_GROUPS, (f"{_group_mean(section, label):.2f}" for label in labels), always))
    return Table("Test top-1 in percent, mean +- standard deviation over seeds", header, tuple(rows))


def _group_mean(section: Section, label: str) -> float:
    means = [section.over(label, GROUPS[group]).mean for group in VTAB_GROUPS]
    return fmean(mean for mean in means if mean is not None)


def costs(section: Section) -> Table:
    header = (
        "method",
        "tuned parameters",
        "% of backbone",
        "s a training",
        "peak MiB",
        "GFLOP forward",
        "GFLOP step",
        "trials a task",
        "failed",
        "search h",
    )
    kinds = sorted({row.memory_kind for cell in section.cells for row in (*cell.finals, *cell.trials)})
    return Table(
        f"Cost of one final run; memory is {' or '.join(kinds)}; FLOPs are for one picture; tuned parameters are "
        "without the head",
        header,
        tuple((label, *_cost_words([c for c in section.cells if c.label == label])) for label in section.labels),
    )


def _cost_words(cells: Sequence[Outcome]) -> tuple[str, ...]:
    finals = [row for cell in cells for row in cell.finals]
    rows = finals or [row for cell in cells for row in cell.trials]
    trials = [row for cell in cells for row in cell.trials]
    forward = [row.flops_forward / 1e9 for row in finals if row.flops_forward is not None]
    step = [row.flops_step / 1e9 for row in finals if row.flops_step is not None]
    failed = sum(row.failed for row in [*trials, *finals])
    return (
        span([row.tuned_parameters for row in rows], "{:,}"),
        span([100 * row.tuned_parameters / row.backbone_parameters for row in rows], "{:.2f}"),
        span([fmean(row.seconds for row in finals)] if finals else [], "{:.1f}"),
        span([max(row.peak_memory_mb for row in rows)], "{:.0f}"),
        span(forward, "{:.3g}"),
        span(step, "{:.3g}"),
        span([len(cell.trials) for cell in cells], "{}"),
        f"{failed} of {len(trials) + len(finals)}",
        f"{sum(row.seconds for row in trials) / 3600:.2f}",
    )


def chosen(section: Section) -> Table:
    rows = []
    for task in section.tasks:
        for label in section.labels:
            cell = section.cell(task, label)
            if cell is not None:
                rows.append((task, label, *_chosen_words(cell)))
    header = ("task", "method", "base lr", "decay", "validation", "failed trials", "seeds", "test pictures", "options")
    return Table("Chosen on validation pictures", header, tuple(rows))


def _chosen_words(cell: Outcome) -> tuple[str, ...]:
    row, trial = (cell.finals or cell.trials)[0], cell.chosen
    point = (f"{row.base_lr:g}", f"{row.weight_decay:g}") if cell.finals else (NOTHING, NOTHING)
    options = {name: value for name, value in json.loads(row.method).items() if name != "name"}
    return (
        *point,
        NOTHING if trial is None or trial.accuracy is None else f"{trial.accuracy:.2f}",
        f"{sum(t.failed for t in cell.trials)} of {len(cell.trials)}",
        f"{len(cell.accuracies)}" + (f" ({cell.failed} failed)" if cell.failed else ""),
        f"{row.evaluation_images:,}" if cell.finals else NOTHING,
        ", ".join(f"{name} {options[name]}" for name in ("num_prompts", "rank", "hidden", "k") if name in options)
        or NOTHING,
    )


def _of_cell(cell: Outcome | None) -> str:
    if cell is None or cell.mean is None:
        return NOTHING
    spread = "" if cell.std is None else f" +- {cell.std:.2f}"
    return f"{cell.mean:.2f}{spread}" + (f" ({len(cell.accuracies)} seed)" if cell.std is None else "")


def _of_average(average: Average) -> str:
    """A mean, marked where it is over a part of the tasks."""
    if average.mean is None:
        return NOTHING
    whole = len(average.tasks) + len(average.missing)
    return f"{average.mean:.2f}" + (
        f" ({len(average.tasks)} of {whole} tasks)" if average.missing else _spread(average)
    )


def _spread(average: Average) -> str:
    return "" if average.std is None else f" +- {average.std:.2f}"


def span(values: Sequence[float | int], form: str) -> str:
    """One value, or the least and the largest."""
    if not values:
        return NOTHING
    ends = dict.fromkeys(form.format(value) for value in (min(values), max(values)))
    return " to ".join(ends)
