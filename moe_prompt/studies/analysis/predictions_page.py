r"""What theory predicts beside what was measured, as a Markdown page that is made and not written.

For every family of :data:`moe_prompt.theory.families.FAMILIES` its condition, its rates and their constants, computed;
beside them the slopes of the studies whose cells belong to it, as the cells say themselves. Then the likelihood
models, cell by cell, by what their studies say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_prompt.basics.tables import markdown
from moe_prompt.errors import InputError
from moe_prompt.studies.analysis.captions import caption
from moe_prompt.studies.analysis.cells import Cell, CellSummary, all_summaries, cells_of
from moe_prompt.studies.base import Quantity, Study
from moe_prompt.studies.kinds.likelihood import LikelihoodStudy
from moe_prompt.studies.running import archive
from moe_prompt.theory.report import FamilyReport

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Measured:
    """A study and what its exported rows say; no cells where there are none."""

    study: Study
    cells: tuple[Cell, ...] = ()


def measured(study: Study, folder: Path) -> Measured:
    """A study with its export in a folder, if that is there."""
    if not (folder / f"{study.name}.csv").exists():
        return Measured(study)
    rows, notes, _ = archive.load_rows(study, folder, exported=True)
    return Measured(study, cells_of(study, rows, notes))


# ------------------------------------------------------------------------------------------------ page


def document(reports: Iterable[FamilyReport], studies: Sequence[Measured], source: str, figures: str) -> str:
    """The page: `source` names the rows, `figures` is the way from the page to the folder of figures."""
    of_likelihood = [found for found in studies if isinstance(found.study, LikelihoodStudy)]
    of_families = [found for found in studies if not isinstance(found.study, LikelihoodStudy)]
    parts = [
        "# What theory predicts and what was measured",
        f"Made by `moe-prompt theory` from the rows in `{source}`; change those, not this page.",
        _HOW_TO_READ,
        "## Families in the regression model",
        _families(reports, of_families, figures),
        "## Studies in the regression model",
        _HOW_TO_READ_STUDIES,
        _studies(of_families, figures),
    ]
    if of_likelihood:
        parts += ["## Likelihood models", _HOW_TO_READ_LIKELIHOOD, _studies(of_likelihood, figures)]
    return "\n\n".join(parts) + "\n"


_HOW_TO_READ = """\
L is the number of prompts of the truth, L' that of the fit. With L' = L least squares errs as n^-1/2 where the Jacobian
has full rank up to the family's symmetry (gauge), and n times the mean square error of the parameters is then at least
the noise variance s^2 times the number below. With L' > L the split error falls as n^-1/4 where sigma_2 > 0; where
sigma_2 = 0 it falls more slowly or not at all; that is derived for one prompt too many and masses bounded below, and to
leading order. With more the condition is that no sum of splits cancels. Rank, bound and sigma_2 are computed at one
generic truth per family, as `moe-prompt identifiability` does; the studies' truths are others. A rate is that of a
family in its own model: it does not say which comes nearer to another's truth. Measured slopes are those of log error
on log n in the study's window, with bootstrap standard errors."""

_HOW_TO_READ_LIKELIHOOD = """\
In contaminated the number in brackets is the slope of the Cramér-Rao bound on the study's sizes, at a truth that may
move with n: it is what an efficient estimator reaches there. The theorem of arXiv 2505.18455 holds over all parameters
at once and guarantees less near the frozen expert, -1/4 for exp(tau) and -3/8 for the others. In softmax-gaussian it is
the theorem's exponent."""

_HOW_TO_READ_STUDIES = """\
In brackets what theory predicts: the exponent of n, "-" where it predicts none, and then, where it gives a constant
too, what was measured at the largest n over constant * n^exponent. Slopes are those of means, or of medians where that
is said. Cells in which a family is fitted to another's data have no rate and are not shown."""


def write(page: str, path: Path) -> None:
    """Write the page; raises InputError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error}): name a file you may write with --out.") from None


def _families(reports: Iterable[FamilyReport], studies: Sequence[Measured], figures: str) -> str:
    head = ("family", "rank", "sigma_2", "L' = L", "n MSE / s^2 at least", "measured", "L' > L", "measured", "why")
    return markdown([head, *(_family(report, studies, figures) for report in reports)])


def _family(report: FamilyReport, studies: Sequence[Measured], figures: str) -> tuple[str, ...]:
    rank = f"{report.rank} of {report.num_parameters}" + (f", gauge {report.gauge}" if report.gauge else "")
    sigma = "-" if report.sigma_2 is None else f"{report.sigma_2:.2g}" if report.rate == "n^-1/4" else "0"
    return (
        report.family,
        rank,
        sigma,
        report.rate_exact,
        f"{report.cramer_rao_trace:.3g}" if report.rate_exact.startswith("n^") else "-",
        _beside(report.family, False, studies, figures),
        report.rate,
        _beside(report.family, True, studies, figures),
        report.reason,
    )


def _beside(family: str, over: bool, studies: Sequence[Measured], figures: str) -> str:
    """The slopes of the first two quantities of a family's cells, a line for each cell."""
    lines = []
    for found in studies:
        for cell in found.cells:
            relation = cell.relation
            if relation.family == family and (relation.over_specified if over else relation.exact):
                atoms = f" (L = {relation.true_atoms}, L' = {relation.fitted_atoms})" if over else ""
                slopes = ", ".join(f"{summary.name} {_slope(summary)}" for summary in cell.summaries[:2])
                lines.append(f"{_figure(found.study.name, figures)}{atoms}: {slopes}")
    return "<br>".join(lines) or NOT_MEASURED


def _studies(studies: Sequence[Measured], figures: str) -> str:
    """A table for each study: every cell with a truth of its own family and every quantity, measured or not."""
    return "\n\n".join(part for found in studies for part in _study(found, figures))


def _study(found: Measured, figures: str) -> tuple[str, ...]:
    study = found.study
    summaries = {(s.cell.truth, s.cell.estimator, s.name): s for s in all_summaries(found.cells)}
    shown = [c for c in study.cells if not study.relation(*c).misspecified]
    quantities = {cell: {q.name: q for q in study.quantities(*cell)} for cell in shown}
    names = list(dict.fromkeys(name for own in quantities.values() for name in own))
    rows = [("truth", "estimator", *names)]
    for cell, own in quantities.items():
        rows.append((*cell, *(_against(own.get(name), summaries.get((*cell, name))) for name in names)))
    head = f"**{_figure(study.name, figures)}**:" if found.cells else f"**{study.name}**, claimed and not measured yet:"
    parts = (f"{head} {study.claim}.", markdown(rows))
    return (*parts, caption(study, found.cells)) if found.cells else parts


def _against(quantity: Quantity | None, cell: CellSummary | None) -> str:
    """A measured slope and in brackets its prediction and, where there is one, the ratio to the predicted constant."""
    if quantity is None:
        return ""
    predicted = "-" if quantity.slope is None else f"{quantity.slope:g}"
    if cell is None:
        return f"{NOT_MEASURED} ({predicted})"
    over = "" if cell.over_prediction is None else f"; {cell.over_prediction:.2f}"
    return f"{_slope(cell)}{' median' * (quantity.statistic == 'median')} ({predicted}{over})"


def _slope(cell: CellSummary) -> str:
    if cell.slope is None:
        return "no slope"
    return f"{cell.slope:.3f}" + ("" if cell.stderr is None else f" ± {cell.stderr:.3f}")


def _figure(study: str, figures: str) -> str:
    return f"[{study}]({figures}/{study}.png)"
