r"""What theory predicts beside what was measured, as a Markdown page that is made and not written.

For every family of :data:`moe_prompt.theory.families.FAMILIES` its condition, its rates and their constants, computed;
beside them the slopes of the studies whose cells belong to it. A cell belongs to a family by the name of its truth:

    a family's name, with ", L = 2" behind it or not      a short name of :data:`moe_prompt.theory.families.EXPERTS`

and it is over-specified where the estimator is called "L' = 3" with more atoms than the truth. Then the likelihood
models, cell by cell, by what their studies say of themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_prompt.errors import InputError
from moe_prompt.studies.analysis.captions import caption
from moe_prompt.studies.analysis.summaries import CellSummary, summarize
from moe_prompt.studies.base import Quantity, Study
from moe_prompt.studies.kinds.likelihood import LikelihoodStudy
from moe_prompt.studies.running import archive
from moe_prompt.tables import markdown
from moe_prompt.theory.families import EXPERTS, FAMILIES
from moe_prompt.theory.report import FamilyReport

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Measured:
    """A study and what its exported rows say; no cells where there are none."""

    study: Study
    cells: tuple[CellSummary, ...] = ()


def measured(study: Study, folder: Path) -> Measured:
    """A study with its export in a folder, if that is there."""
    if not (folder / f"{study.name}.csv").exists():
        return Measured(study)
    rows, notes, _ = archive.load_evidence(study, folder, exported=True)
    return Measured(study, tuple(summarize(study, rows, notes)))


def family_of(truth: str) -> str | None:
    """The family that a truth's name tells.

    >>> family_of("VAPT, tanh, L = 2"), family_of("vpt"), family_of("laplace")
    ('VAPT, tanh', 'VPT, B injective', None)
    """
    name = re.sub(r", L = \d+$", "", truth)
    if name in FAMILIES:
        return name
    return next((family for family, recipe in FAMILIES.items() if recipe is EXPERTS.get(truth)), None)


def excess_atoms(truth: str, estimator: str) -> int | None:
    """How many atoms more an estimator of the truth's own family has; None: it is of another, or does not say.

    >>> excess_atoms("VAPT, tanh, L = 2", "L' = 3"), excess_atoms("vpt", "vpt"), excess_atoms("vpt", "vapt")
    (1, 0, None)
    """
    if truth == estimator:
        return 0
    found = [re.search(pattern, name) for pattern, name in ((r", L = (\d+)$", truth), (r"^L' = (\d+)$", estimator))]
    true, fitted = (int(match.group(1)) if match else None for match in found)
    return None if true is None or fitted is None else fitted - true


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
    lines: dict[tuple[str, str, str], list[str]] = {}
    for found in studies:
        for cell in found.cells:
            excess = excess_atoms(cell.truth, cell.estimator)
            if family_of(cell.truth) == family and excess is not None and (excess > 0) == over:
                where = (found.study.name, cell.truth, cell.estimator)
                lines.setdefault(where, []).append(f"{cell.loss} {_slope(cell)}")
    cells = ((f"{_figure(name, figures)}{_atoms(*cell)}", slopes[:2]) for (name, *cell), slopes in lines.items())
    return "<br>".join(f"{where}: {', '.join(slopes)}" for where, slopes in cells) or NOT_MEASURED


def _atoms(truth: str, estimator: str) -> str:
    number = re.search(r"L = \d+$", truth)
    return f" ({number.group()}, {estimator})" if number else ""


def _studies(studies: Sequence[Measured], figures: str) -> str:
    """A table for each study: every cell with a truth of its own family and every quantity, measured or not."""
    return "\n\n".join(part for found in studies for part in _study(found, figures))


def _study(found: Measured, figures: str) -> tuple[str, ...]:
    study, summaries = found.study, {(cell.truth, cell.estimator, cell.loss): cell for cell in found.cells}
    shown = [c for c in study.cells if isinstance(study, LikelihoodStudy) or excess_atoms(*c) is not None]
    quantities = {cell: {q.name: q for q in study.quantities(*cell)} for cell in shown}
    names = list(dict.fromkeys(name for own in quantities.values() for name in own))
    rows = [("truth", "estimator", *names)]
    for cell, own in quantities.items():
        rows.append((*cell, *(_against(own.get(name), summaries.get((*cell, name))) for name in names)))
    head = f"**{_figure(study.name, figures)}**:" if found.cells else f"**{study.name}**, claimed and not measured yet:"
    parts = (f"{head} {study.claim}.", markdown(rows))
    return (*parts, caption(study, list(found.cells))) if found.cells else parts


def _against(quantity: Quantity | None, cell: CellSummary | None) -> str:
    """A measured slope and in brackets its prediction and, where there is one, the ratio to the predicted constant."""
    if quantity is None:
        return ""
    predicted = "-" if quantity.slope is None else f"{quantity.slope:g}"
    if cell is None:
        return f"{NOT_MEASURED} ({predicted})"
    over = "" if cell.over_prediction is None else f"; {cell.over_prediction:.2f}"
    return f"{_slope(cell)}{' median' * (cell.statistic == 'median')} ({predicted}{over})"


def _slope(cell: CellSummary) -> str:
    if cell.slope is None:
        return "no slope"
    return f"{cell.slope:.3f}" + ("" if cell.stderr is None else f" ± {cell.stderr:.3f}")


def _figure(study: str, figures: str) -> str:
    return f"[{study}]({figures}/{study}.png)"
