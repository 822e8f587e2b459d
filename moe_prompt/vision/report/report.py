"""The report: accuracies beside published numbers, and costs; as text, Markdown or CSV.

A mean over part of a group shows its number of tasks, and a note lists the missing ones. Papers use two means over
VTAB, over all 19 tasks and over the three group means; the report labels them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean

from moe_prompt.errors import choose, require
from moe_prompt.vision.report.outcomes import Outcome, Section, sections
from moe_prompt.vision.report.tables import Quotes, accuracies, chosen, costs, places, span
from moe_prompt.vision.tuning.run_table import RunRow

_HOW_COMPARED = (
    "Differences are paired by seed and given as mean +- standard error. 'Better' means that their 95 % interval "
    "excludes zero and that the mean difference exceeds the standard deviation over seeds of either method. This "
    "does not account for the choice of test pictures."
)


@dataclass(frozen=True)
class Report:
    """A report; each section is for one backbone, picture size, share of the data and number of epochs."""

    sections: tuple[Section, ...]
    against: str | None = None
    """The method that the others are compared with."""

    def text(self) -> str:
        return "\n\n".join(part for section in self.sections for part in self._parts(section, markdown=False)) + "\n"

    def markdown(self) -> str:
        return "\n\n".join(part for section in self.sections for part in self._parts(section, markdown=True)) + "\n"

    def csv(self) -> str:
        """One line for each task, group or mean of each method."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for section in self.sections:
            writer.writerows(_long_rows(section))
        return stream.getvalue()

    def _parts(self, section: Section, markdown: bool) -> Iterable[str]:
        yield f"## {section.setting}" if markdown else str(section.setting)
        quotes = Quotes(section)
        for table in (accuracies(section, quotes), costs(section), chosen(section)):
            yield table.markdown() if markdown else table.text()
        notes = [*_notes(section), *quotes.notes(), *self._comparisons(section)]
        if notes:
            yield "\n".join(f"- {note}" if markdown else note for note in notes)

    def _comparisons(self, section: Section) -> list[str]:
        """Every method against one of them, on each task and on the mean of those that all have."""
        if self.against:
            choose("method to compare with", self.against, dict.fromkeys(section.labels))
        base = self.against or ("vpt-deep" if "vpt-deep" in section.labels else section.labels[0])
        common = section.common_tasks
        wanted = [(task,) for task in section.tasks] + ([common] if len(common) > 1 else [])
        pairs = ((label, tasks) for label in section.labels if label != base for tasks in wanted)
        found = [d.sentence() for label, tasks in pairs if (d := section.difference(label, base, tasks))]
        return [_HOW_COMPARED, *found] if found else []


def tuning_report(rows: Iterable[RunRow], against: str | None = None) -> Report:
    """The report of these rows.

    Raises:
        InputError: no rows.
    """
    rows = tuple(rows)
    require(bool(rows), "no runs to report: run `moe-prompt classify tune` first, or name its folder.")
    return Report(sections(rows), against)


def _notes(section: Section) -> list[str]:
    return [*_partial_means(section), *_incomplete_cells(section), *_unequal_searches(section)]


def _partial_means(section: Section) -> Iterator[str]:
    """A note for each incomplete mean on the tasks that are missing; methods that lack the same tasks share a note."""
    for place, tasks in places(section):
        lacking: dict[tuple[str, ...], list[str]] = {}
        for label in section.labels:
            average = section.over(label, tasks)
            if average.missing and average.tasks:
                lacking.setdefault(average.missing, []).append(label)
        for missing, labels in lacking.items():
            whose = "" if len(labels) == len(section.labels) else f" of {', '.join(labels)}"
            yield (
                f"{place}{whose} is over {len(tasks) - len(missing)} of {len(tasks)} tasks, beside no published mean: "
                f"missing are {', '.join(missing)}."
            )


def _incomplete_cells(section: Section) -> Iterator[str]:
    for cell in section.cells:
        where = f"{cell.task}, {cell.label}"
        if not cell.finals:
            yield f"{where}: searched, not tested yet."
        if not cell.trials:
            yield f"{where}: the learning rate was given by the user, not searched."
        if cell.failed:
            yield f"{where}: {cell.failed} of {len(cell.finals)} seeds failed and enter no mean."
        if cell.left_out:
            yield f"{where}: {cell.left_out} final runs left out, for validation chose other hyper-parameters."


def _unequal_searches(section: Section) -> Iterator[str]:
    trials = {label: {len(c.trials) for c in section.cells if c.label == label} for label in section.labels}
    if len(set().union(*trials.values())) > 1:
        each = "; ".join(f"{label} {span(sorted(found), '{}')}" for label, found in trials.items())
        yield f"The searches are not of equal size, which favours the larger: trials a task, {each}."


_COLUMNS = (
    *("backbone", "height", "width", "epochs", "share", "kind", "place", "method", "mean", "std", "seeds", "failed"),
    *("tasks", "missing", "tuned_parameters", "tuned_percent", "seconds", "peak_memory_mb", "flops_forward"),
    *("flops_step", "base_lr", "weight_decay", "trials", "search_seconds", "reported", "source"),
)


def _long_rows(section: Section) -> Iterator[dict[str, object]]:
    """The lines of the CSV: one for each outcome and each mean."""
    quotes, setting = Quotes(section), section.setting
    common = {name: getattr(setting, name) for name in ("backbone", "height", "width", "epochs", "share")}
    for cell in section.cells:
        yield (
            common
            | {"kind": "task", "place": cell.task, "tasks": 1}
            | _cell_values(cell)
            | _quoted(quotes, cell.label, cell.task)
        )
    for place, tasks in places(section):
        for label in section.labels:
            average = section.over(label, tasks)
            told = {"method": label, "mean": average.mean, "std": average.std, "tasks": len(average.tasks)}
            missing = {"missing": " ".join(average.missing)}
            beside = {} if average.missing else _quoted(quotes, label, place)
            yield common | {"kind": "mean", "place": place} | told | missing | beside


def _cell_values(cell: Outcome) -> dict[str, object]:
    row, finals = (cell.finals or cell.trials)[0], cell.finals
    return {
        "method": cell.label,
        "mean": cell.mean,
        "std": cell.std,
        "seeds": len(cell.accuracies),
        "failed": cell.failed,
        "tuned_parameters": row.tuned_parameters,
        "tuned_percent": 100 * row.tuned_parameters / row.backbone_parameters,
        "seconds": fmean(final.seconds for final in finals) if finals else None,
        "peak_memory_mb": max(final.peak_memory_mb for final in finals) if finals else None,
        "flops_forward": row.flops_forward,
        "flops_step": row.flops_step,
        "base_lr": row.base_lr if finals else None,
        "weight_decay": row.weight_decay if finals else None,
        "trials": len(cell.trials),
        "search_seconds": sum(trial.seconds for trial in cell.trials),
    }


def _quoted(quotes: Quotes, label: str, place: str) -> dict[str, object]:
    quote = quotes.of(label, place)
    return {} if quote is None else {"reported": quote.value, "source": str(quote.source)}
