"""From run folders to one self-contained HTML page. Imports no torch."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup

from replication import paper
from replication.analysis import clock, tables
from replication.analysis.arms import Runs, count_planned, group_by_arm, head_of, label, without_ablations
from replication.analysis.claims import MARGIN, Verdict, verdicts
from replication.analysis.readings import READINGS
from replication.analysis.series import first_seed
from replication.config.keys import flatten
from replication.config.profiles import arm_names, default_seeds, resolve_name
from replication.flops.ledger import CONVENTIONS
from replication.report import words
from replication.runs.finding import choose_results, sort_out_runs
from replication.runs.folder import RunFolder
from replication.runs.frames import numeric
from replication.system.errors import DamagedError, UserError
from replication.system.files import write_atomically

GENERATOR = '<meta name="generator" content="mst-replication report">'  # by which our page is known
OWN_COUNTS = [reading.convention for reading in READINGS]  # of a masked head, which is Table 1's, and of a dense one
# Of Table 1: those that decide, which a narrow screen shows first, come first.
DECIDE = ("arm", "FLOPs saved", "val. loss ↓", "loss − dense (n)")


class ReadOnce(RunFolder):
    """A finished run of which each file is read once, for all tables and figures of the page."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for name in ("config", "metrics", "topology", "flops", "masks"):
            setattr(self, name, cache(getattr(self, name)))


def write_report(results: Path | str | None, profile: str, out: Path) -> str:
    """Write the page of a profile's finished runs, of `runs.chosen` folder.

    Returns:
        A line that says where it is, how large, and of which runs.

    Raises:
        UserError: the profile has no finished run, the runs do not belong in one table, or `out` is another file.
    """
    _check_out(out)
    folder, source = choose_results(results, profile)
    found, left_out = sort_out_runs(folder, profile)
    runs = [ReadOnce(run.path) for run in without_ablations(found, profile)]
    tables.check_any(runs, left_out, folder, profile)
    page = render(runs, resolve_name(profile), folder, source, left_out)
    write_atomically(out, page)
    return f"{out}: {len(page.encode()) / 1e6:.1f} MB. {source}"


def render(found: Sequence[RunFolder], profile: str, folder: Path, source: str, left_out: Sequence[str]) -> str:
    """The page; `source` and `left_out` are said at its top."""
    from replication.report import figures  # seaborn takes seconds, which a mistake in the options need not wait

    runs, table, claims = group_by_arm(found), tables.table1(found), verdicts(found)
    used = _tabulate_use(runs)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("replication.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"csv": to_uri, "size": _size, "picture": figures.to_uri}
    return environment.get_template("page.html").render(
        generator=Markup(GENERATOR),
        profile=profile,
        scale=_scale(runs),
        source=source,
        problems=[*_missing(runs, profile), *left_out, *_unreadable_masks(runs)],
        finding=words.finding(claims),
        margin=MARGIN,
        heads=[head_of(reading.arm("mst")) for reading in READINGS],
        table=_table1(table),
        own_counts={name: words.CONVENTIONS[name] for name in OWN_COUNTS},
        every_count=_cells(tables.reduction_columns(table)),
        remarks=tables.remarks(table),
        time=_cells(tables.time_columns(table)),
        time_words=clock.explain_clock(table),
        scores=_cells(tables.zero_shot_rows(table)) if tables.zero_shot_metrics(table) else None,
        whole_table=table,
        verdicts=[_verdict(verdict) for verdict in claims],
        powers=[verdict.power for verdict in claims if verdict.power],
        figures=list(figures.draw_all_arms(runs, table, count_planned(folder), profile)),
        layers=list(figures.draw_single_arms(runs)),
        used=used,
        resources=_resources(used),
        arms={arm: label(arm) for arm in runs},
        origins=_origins(runs),
        provenance=_provenance(runs),
        ledger=paper.groups(),
        style=_asset("style.css"),
        script=_asset("page.js"),
    )


def to_uri(frame: pd.DataFrame) -> str:
    """A data frame as the data: URI of its CSV; numbers have six digits, counts all of theirs."""
    text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return "data:text/csv;charset=utf-8," + quote(text, safe=",:;/()+=-._~*'@$&?!")


def _size(frame: pd.DataFrame) -> str:
    return f"{max(1.0, len(frame.to_csv(index=False, float_format='%.6g')) / 1e3):.0f} kB"


def _check_out(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"--out is {out}, which is a folder; allowed: a file, such as {out / 'report.html'}")
    if out.exists() and not out.is_file():
        raise UserError(f"--out is {out}, which is a pipe or a device; allowed: a file")
    if out.exists() and GENERATOR not in out.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise UserError(f"--out is {out}, which is there and is no report; allowed: a new file, or an earlier report")


def _missing(runs: Runs, profile: str) -> list[str]:
    """A line for each arm of the profile of which seeds are not there."""
    lines = []
    for arm in arm_names(profile):
        seeds = [seed for seed in default_seeds(profile, arm) if seed not in runs.get(arm, {})]
        if seeds:
            lines.append(f"{label(arm)}: no finished run of seed {', '.join(map(str, seeds))}")
    return lines


def _scale(runs: Runs) -> str:
    """Size and length of the runs, in a line."""
    run = first_seed(next(iter(runs.values())))
    model, flops = run.config()["model"], run.flops()
    return (
        f"GPT-2 of {model['n_layer']} layers, width {model['n_embd']}, context {model['n_positions']}; "
        f"{flops['steps']:,} steps, {flops['tokens']:,} tokens ({label(run.path.parent.name)})"
    )


def _table1(table: pd.DataFrame) -> dict[str, Any]:
    """Columns, and per row its head and cells; × is under each reading's own count."""
    shown, times = tables.main_columns(table), tables.reduction_columns(table)
    shown.insert(1, words.CONVENTIONS[OWN_COUNTS[1]], times[OWN_COUNTS[1]])
    columns = [*DECIDE, *(name for name in shown.columns if name not in DECIDE)]
    rows = [{"head": head, "cells": cells} for head, cells in zip(table["head"], shown.to_dict("records"))]
    return {"columns": columns, "decide": DECIDE, "rows": rows}


def _cells(frame: pd.DataFrame) -> dict[str, Any]:
    return {"columns": list(frame.columns), "rows": frame.astype(str).to_numpy().tolist()}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """A verdict, of which reading of the head, and whether it is C1 under another count than that reading's own."""
    reading = words.reading_of(verdict)
    counted = next((name for name in CONVENTIONS if verdict.statement.endswith(f"({name})")), "")
    own = reading.convention if reading else counted
    head = head_of(reading.arm("mst")) if reading else ""
    return {"verdict": verdict, "head": head, "is_other_count": verdict.claim == "C1" and counted not in ("", own)}


def _provenance(runs: Runs) -> pd.DataFrame:
    """A row per run: arm, seed, and all that its `environment.json` says, `resumed` as it stands there."""
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, **flatten(run.environment())}
            for arm, seeds in runs.items()
            for seed, run in seeds.items()
        ]
    )


def _unreadable_masks(runs: Runs) -> Iterator[str]:
    """A line for each first seed whose masks are damaged."""
    for seeds in runs.values():
        run = first_seed(seeds)
        try:
            run.masks()
        except DamagedError as error:
            yield f"{run.name}: {error}"


def _tabulate_use(runs: Runs) -> pd.DataFrame:
    """A row per arm and phase: what its first seed used; empty where no run keeps it."""
    used = {arm: first_seed(seeds).resources() or {} for arm, seeds in runs.items()}
    return numeric(
        pd.DataFrame(
            [
                {"arm": arm, "phase": phase, **flatten(account), "energy": own.get("energy")}
                for arm, own in used.items()
                for phase, account in own.get("phases", {}).items()
            ]
        )
    )


def _resources(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Arm -> a table of what its first seed used, a row per phase."""
    found = {}
    for arm, rows in frame.groupby("arm", sort=False) if len(frame) else ():
        seconds = [name for name in rows if name.startswith("seconds.") and rows[name].notna().any()]
        columns = {"phase": rows["phase"], "steps": rows["steps"].map("{:.0f}".format)}
        columns |= {f"{name.removeprefix('seconds.')}, s": rows[name].map("{:.2f}".format) for name in seconds}
        columns |= {"CPU s": rows["cpu_seconds"].map("{:.1f}".format)}
        columns |= {f"kJ ({rows['energy'].iloc[0]})": (rows["joules"] / 1e3).map("{:.3f}".format)}
        columns |= {"resident MB": (rows["resident_bytes"] / 1e6).map("{:.0f}".format)}
        columns |= {"MFU": rows["mfu"].map("{:.1%}".format)}
        found[arm] = _cells(pd.DataFrame(columns))
    return found


def _origins(runs: Runs) -> list[dict[str, Any]]:
    """The different environments that the runs have, each with its runs: `facts`, `runs` (arm -> seeds) and their
    `count`."""
    groups: dict[str, dict[str, Any]] = {}
    for arm, seeds in runs.items():
        for seed, run in seeds.items():
            facts = {key: _show(value) for key, value in flatten(run.environment()).items()}
            group = groups.setdefault(json.dumps(facts), {"facts": facts, "runs": {}, "count": 0})
            group["runs"].setdefault(label(arm), []).append(str(seed))
            group["count"] += 1
    return list(groups.values())


def _show(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)


def _asset(name: str) -> Markup:
    return Markup(resources.files("replication.report").joinpath("templates", name).read_text(encoding="utf-8"))
