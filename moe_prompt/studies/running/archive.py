"""Rows of a study on disk: the database while it runs, exported rows with their provenance once it is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from moe_prompt.errors import InputError, choose, require
from moe_prompt.studies.base import Study
from moe_prompt.studies.running.database import Results, columns_of

FORMATS = ("csv", "parquet")


class StudyRows(NamedTuple):
    """The rows of a study and what was noted beside them; `source` says where they were found."""

    rows: pd.DataFrame
    notes: Mapping[str, Any]
    source: Path


def database(folder: Path, name: str) -> Path:
    return folder / f"{name}.sqlite"


def load_rows(study: Study, folder: Path, exported: bool = False) -> StudyRows:
    """Rows of this study, its sizes and replicates only, from the database in `folder` or else from an export there.

    With `exported`, from the export alone.
    """
    for find in (_from_export,) if exported else (_from_database, _from_export):
        found = find(study, folder)
        if found is not None:
            kept = of_study(study, found.rows)
            if len(kept):
                return found._replace(rows=kept)
    raise InputError(
        f"no rows of study {study.name} (seed {study.seed}) in {folder}: run it first with `moe-prompt study "
        "run`, or name the folder that has them with --out."
    )


def of_study(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of this study's sizes and replicates."""
    kept = rows[rows.n.isin(study.sizes) & (rows.replicate < study.replicates)]
    return kept.reset_index(drop=True)


def export(study: Study, folder: Path, format: str = "csv") -> list[Path]:
    """Write the rows of the database as CSV or Parquet and their provenance as JSON, beside the database."""
    choose("format", format, dict.fromkeys(FORMATS))
    found = _from_database(study, folder)
    require(found is not None, f"no rows of study {study.name} in {database(folder, study.name)}: run it first.")
    assert found is not None
    return write_export(study, found.rows, found.notes, folder, format)


def write_export(
    study: Study, rows: pd.DataFrame, notes: Mapping[str, Any], folder: Path, format: str = "csv"
) -> list[Path]:
    """Write rows as CSV or Parquet and their provenance as JSON."""
    choose("format", format, dict.fromkeys(FORMATS))
    rows = rows.drop(columns="study")
    table, about = folder / f"{study.name}.{format}", folder / f"{study.name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if format == "csv":
            rows.to_csv(table, index=False, float_format="%.8g", lineterminator="\n")
        else:
            rows.to_parquet(table, index=False)
        about.write_text(json.dumps(_provenance(study, rows, notes), indent=1) + "\n")
    except ImportError:
        raise InputError(
            "Parquet needs pyarrow: pip install pyarrow (the extra `parquet`), or export as csv."
        ) from None
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error}): name a folder you may write to with --out.") from None
    return [table, about]


def restore(study: Study, folder: Path, results: Results) -> int:
    """Put exported rows into a database that has none of this study: a run goes on from rows that were committed."""
    if results.done(study.key):
        return 0
    found = _from_export(study, folder)
    if found is None:
        return 0
    rows = found.rows.astype(object).where(found.rows.notna(), None).assign(study=study.key)
    results.add(rows.to_dict("records"))
    for name, value in found.notes.items():
        results.note(study.key, name, value)
    return len(rows)


def _from_database(study: Study, folder: Path) -> StudyRows | None:
    path = database(folder, study.name)
    if not path.exists():
        return None
    results = Results(path, study.columns)
    rows, notes = results.frame(study.key), results.notes(study.key)
    results.close()
    return StudyRows(rows, notes, path) if len(rows) else None


def _from_export(study: Study, folder: Path) -> StudyRows | None:
    table, about = folder / f"{study.name}.csv", folder / f"{study.name}.json"
    if not (table.exists() and about.exists()):
        return None
    try:
        provenance = json.loads(about.read_text())
        rows = pd.read_csv(table, keep_default_na=True)
    except (ValueError, OSError) as error:
        raise InputError(f"{table} or {about.name} cannot be read ({error}): export the study again.") from None
    require(
        isinstance(provenance, dict) and {"key", "fits", "notes"} <= set(provenance),
        f"{about} is not the provenance of an export: export the study again.",
    )
    if provenance["key"] != study.key:
        return None
    missing = set(columns_of(study.columns)) - set(rows.columns) - {"study"}
    require(not missing, f"{table} lacks the columns {', '.join(sorted(missing))}: export the study again.")
    require(
        len(rows) == provenance["fits"],
        f"{table} has {len(rows)} of the {provenance['fits']} rows that {about.name} tells of: export the study again.",
    )
    return StudyRows(rows, provenance["notes"], table)


def _provenance(study: Study, rows: pd.DataFrame, notes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "study": study.name,
        "key": study.key,
        "claim": study.claim,
        "seed": study.seed,
        "sizes": study.sizes,
        "replicates": study.replicates,
        "window": study.window,
        "fits": len(rows),
        "cpu_hours": round(float(rows.cpu_seconds.sum()) / 3600, 3),
        "notes": notes,
    }
