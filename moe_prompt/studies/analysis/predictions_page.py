r"""What theory predicts beside what was measured, as a Markdown page that is made and not written.

First every family of :data:`moe_prompt.theory.families.FAMILIES` with its condition and its rates, computed. Then every
study, with a table that sets the slope of each cell beside its prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_prompt.basics.tables import markdown
from moe_prompt.errors import InputError, require
from moe_prompt.studies.analysis.blocks import fill_blocks, slope_words, study_block
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


def refresh(path: Path, studies: Sequence[Measured]) -> None:
    """Make the tables of a page again that stand between markers; InputError for a marker that no study answers."""
    cells = {found.study.name: found.cells for found in studies}

    def block(name: str) -> str:
        require(name in cells, f"{path} has a table of {name}: there is no study of that name; mend the marker.")
        return study_block(cells[name])

    write(fill_blocks(path.read_text(encoding="utf-8"), block), path)


def write(page: str, path: Path) -> None:
    """Write the page; raises InputError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error}): name a file you may write with --out.") from None


# ------------------------------------------------------------------------------------------------ page


def document(reports: Iterable[FamilyReport], studies: Sequence[Measured], source: str, figures: str) -> str:
    """The page: `source` names the rows, `figures` is the way from the page to the folder of figures."""
    of_likelihood = [found for found in studies if isinstance(found.study, LikelihoodStudy)]
    of_families = [found for found in studies if not isinstance(found.study, LikelihoodStudy)]
    reports = list(reports)
    parts = [
        "# What theory predicts and what was measured",
        f"`moe-prompt theory` makes this page from the rows in `{source}`. An edit by hand is lost at the next run.",
        _INTRODUCTION,
        "## Families in the regression model",
        _FAMILIES,
        markdown([_FAMILY_HEAD, *(_family(report, of_families) for report in reports)]),
        _WHY,
        "\n".join(f"- **{report.family}**: {report.reason}" for report in reports),
        "## Studies in the regression model",
        _STUDIES,
        *(_study(found, figures) for found in of_families),
    ]
    if of_likelihood:
        parts += ["## Likelihood models", _LIKELIHOOD, *(_study(found, figures) for found in of_likelihood)]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
L is the number of prompts of the truth, and L' is the number of prompts of the fitted model. A fit with L' = L is *exact-specified*, a fit with L' > L is *over-specified*. The other words are explained in the glossary of the documentation.

A rate on this page is the rate at which a family learns a truth of its own. It does not say which of two families comes nearer to a truth of a third."""  # noqa: E501

_FAMILIES = """\
Rank, bound and sigma_2 are computed at one generic truth of each family, as `moe-prompt identifiability` does. The truths of the studies are others.

- **rank** is the rank of the Jacobian of the function in its parameters. **gauge** counts the directions in which a symmetry moves the parameters and not the function. With L' = L, least squares errs as n^-1/2 if the rank is the number of parameters minus the gauge.
- **n MSE / s^2 at least** is the Cramér-Rao bound: n times the mean square error of the parameters is at least this number times the variance s^2 of the noise.
- **sigma_2** says how much the function changes when one prompt splits in two. If it is positive, an over-specified fit learns the split at n^-1/4. If it is 0, the fit learns the split more slowly or not at all. This is derived to leading order, for one prompt too many and masses bounded below. With more prompts too many, the condition is that no sum of splits cancels.
- **measured in** names the studies with cells of this family; their slopes are below."""  # noqa: E501

_WHY = """\
Why the rate with L' > L is what it is. Here f is the function of the model, e^b the mass of the prompt that splits, and the direction of a split is named by the parameters that it changes."""  # noqa: E501

_STUDIES = """\
A number is the slope of log error on log n in the study's window, with its bootstrap standard error; it is the slope of the mean, or of the median where that is said. In brackets stands the slope that theory predicts, "-" where it predicts none. Behind it follows, where theory gives a constant too, the error measured at the largest n over the predicted one. A cell in which a model is fitted to the data of another family has no rate and is left out."""  # noqa: E501

_LIKELIHOOD = """\
In *contaminated* the predicted slope is that of the Cramér-Rao bound on the study's sizes, at a truth that may move with n. An efficient estimator reaches this slope. The theorem of arXiv 2505.18455 holds over all parameters at once and guarantees less near the frozen expert: -1/4 for exp(tau) and -3/8 for the other parameters. In the *softmax-gaussian* studies the predicted slope is that of the theorem of arXiv 2305.03288."""  # noqa: E501

_FAMILY_HEAD = (
    *("family", "parameters", "rank", "gauge", "rate, L' = L", "n MSE / s^2 at least"),
    *("sigma_2", "rate, L' > L", "measured in"),
)


def _family(report: FamilyReport, studies: Sequence[Measured]) -> tuple[str, ...]:
    sigma = "-" if report.sigma_2 is None else f"{report.sigma_2:.2g}" if report.rate == "n^-1/4" else "0"
    own = [f.study.name for f in studies if any(_belongs(cell, report.family) for cell in f.cells)]
    return (
        report.family,
        str(report.num_parameters),
        str(report.rank),
        str(report.gauge),
        report.rate_exact,
        f"{report.cramer_rao_trace:.3g}" if report.rate_exact.startswith("n^") else "-",
        sigma,
        report.rate,
        ", ".join(f"[{name}](#{name})" for name in own) or NOT_MEASURED,
    )


def _belongs(cell: Cell, family: str) -> bool:
    return cell.relation.family == family and not cell.relation.misspecified


def _study(found: Measured, figures: str) -> str:
    """A section: the claim, a line for every cell with a truth of its own family, and what the rows say together."""
    study = found.study
    told = {(s.cell.truth, s.cell.estimator, s.name): s for s in all_summaries(found.cells)}
    shown = [cell for cell in study.cells if not study.relation(*cell).misspecified]
    quantities = {cell: {q.name: q for q in study.quantities(*cell)} for cell in shown}
    names = list(dict.fromkeys(name for own in quantities.values() for name in own))
    rows = [("truth", "fitted model", *names)]
    for cell, own in quantities.items():
        rows.append((*cell, *(_against(own.get(name), told.get((*cell, name))) for name in names)))
    claim = f"Claim: {study.claim}."
    if found.cells:
        claim += f" [Figure]({figures}/{study.name}.png)."
    parts = [f"### {study.name}", claim if found.cells else f"{claim} It is not measured yet.", markdown(rows)]
    return "\n\n".join([*parts, caption(study, found.cells)] if found.cells else parts)


def _against(quantity: Quantity | None, summary: CellSummary | None) -> str:
    """A measured slope and in brackets its prediction and, where there is one, the ratio to the predicted constant."""
    if quantity is None:
        return ""
    predicted = "-" if quantity.slope is None else f"{quantity.slope:g}"
    if summary is None:
        return f"{NOT_MEASURED} ({predicted})"
    over = "" if summary.over_prediction is None else f"; {summary.over_prediction:.2f}"
    return f"{slope_words(summary)}{' median' * (quantity.statistic == 'median')} ({predicted}{over})"
