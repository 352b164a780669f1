"""What an arm was trained with, and by how many tries that was found: what stands beside its row."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from replication.analysis.arms import OURS
from replication.config.profiles import profile_arms, read_tuned_settings
from replication.runs.finding import REFERENCE
from replication.runs.folder import RunFolder
from replication.system.errors import UserError


@dataclass(frozen=True)
class Tries:
    """Of one arm: settings that were tried; and keys of which the lowest or the highest value tried was chosen, so that
    a better one may lie beyond."""

    num: int
    at_end: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.num}{'*' if self.at_end else ''}"


def settings_of(run: RunFolder) -> dict[str, object]:
    """Columns of a table: `head`, whether it is masked; `learning_rate`; where the topology evolves `drop_fraction` and
    `update_freq`, of a user's own method, which may have schedules of its own, as was logged; and `tries`."""
    config = run.config()
    sparsity, method = config["sparsity"], config["method"]
    row = {"head": "", "learning_rate": config["train"]["learning_rate"], "drop_fraction": None, "update_freq": None}
    if method != "dense":
        row["head"] = "masked" if sparsity["mask_lm_head"] else "dense"
    if method not in OURS:
        row["drop_fraction"] = max(line["drop_fraction"] for line in run.metrics()) or None
    elif method not in ("dense", "static"):
        row |= {"drop_fraction": sparsity["drop_fraction"], "update_freq": sparsity["update_freq"]}
    return row | {"tries": str(tries(config["profile"], config["arm"]) or "")}


def tries(profile: str, arm: str) -> Tries | None:
    """What the committed `tuning.csv` says of an arm; None: it was not tuned, or is `like` one that was."""
    file = REFERENCE / profile / "tuning.csv"
    try:
        is_tuned = file.is_file() and arm in profile_arms(profile) and read_tuned_settings(profile, arm)
    except UserError:  # a profile that is not there any more
        return None
    if not is_tuned:
        return None
    table = pd.read_csv(file)
    rows = table[table["arm"] == arm]
    return count_tries(rows) if len(rows) else None


def tuning(results: Path, profile: str) -> pd.DataFrame | None:
    """What `make tune` tried of a profile: beside these runs, or else what the profile's settings are from.

    None: it was not tuned, or is a profile of a user's, who has not tuned it.
    """
    files = (results / profile / "tuning.csv", REFERENCE / profile / "tuning.csv")
    return next((pd.read_csv(file) for file in files if file.is_file()), None)


def count_tries(rows: pd.DataFrame) -> Tries:
    """Of one arm's rows of a `tuning.csv`; settings that are equal to two digits are one."""
    keys = [column for column in rows.columns if "." in column and rows[column].notna().any()]
    chosen = rows[rows["chosen"].astype(bool)]
    ends = [
        key
        for key in keys
        if len(chosen) and rows[key].nunique() > 1 and chosen[key].iloc[0] in (rows[key].min(), rows[key].max())
    ]
    return Tries(len(rows[keys].map(lambda value: f"{value:.2g}").drop_duplicates()), tuple(ends))
