"""How two runs differ: what they were made with, the cases they scored, the scores, and the verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.errors import BadInput
from embedprior.report.formatting import estimate, fixed, interval, markdown_table, signed
from embedprior.runs import canonical, read_json
from embedprior.runs.integrity import read_run_record, refuse_changed_result
from embedprior.tables import PREDICTION_REQUIRED, read_table

ABSENT = "–"
CASE = ["design", "exam_id"]
SCORE = ["design", "method", "exam_id", "resample", "fold", "seed"]


@dataclass(frozen=True)
class RunFiles:
    """What a finished run left: its record, plan (empty where it has none), held-out scores, and evidence by design."""

    folder: Path
    record: Mapping[str, Any]
    plan: Mapping[str, Any]
    scores: pd.DataFrame
    evidence: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class RunComparison:
    """How run B differs from run A.

    Attributes:
        settings: ``what, A, B``: configuration, seed, inputs, code and versions that differ.
        cases: ``design, both, only A, only B, other label``: held-out exams.
        methods: ``design, method, AUC of A, AUC of B, B − A, scores, largest change, rank correlation``.
        verdicts: ``design, comparison, A, B``: verdicts that differ.
    """

    settings: pd.DataFrame
    cases: pd.DataFrame
    methods: pd.DataFrame
    verdicts: pd.DataFrame

    @property
    def same(self) -> bool:
        """Whether the runs scored the same cases alike."""
        moved = self.cases[["only A", "only B", "other label"]].to_numpy().any()
        return not moved and bool((self.methods["largest change"] == 0).all())

    def markdown(self) -> str:
        """Return the comparison as Markdown: two sentences, then the tables that have rows."""
        lines = ["# Two runs compared", "", _results_sentence(self), _reasons_sentence(self), ""]
        for heading, frame in (
            ("What they were made with", self.settings), ("Held-out cases", self.cases),
            ("Methods", self.methods), ("Verdicts that differ", self.verdicts),
        ):  # fmt: skip
            if len(frame):
                rows = [[_text(value) for value in row] for row in frame.itertuples(index=False)]
                numeric = [bool(pd.api.types.is_numeric_dtype(frame[name])) for name in frame]
                lines += [f"## {heading}", "", markdown_table([str(name) for name in frame], rows, numeric), ""]
        return "\n".join(lines)


def compare_runs(a: Path | str, b: Path | str) -> RunComparison:
    """Compare two finished studies, demos or evaluations from the files that they left; nothing is computed anew.

    Args:
        a, b: folders of the runs.

    Raises:
        BadInput: a folder holds no finished run with scores.

    Example:
        >>> from pathlib import Path
        >>> from embedprior.runs import write_json, write_text
        >>> for name, score in (("a", 0.2), ("b", 0.3)):
        ...     Path(name).mkdir()
        ...     write_json(Path(name) / "run.json", {"status": "done", "config": {"lr": score}, "versions": {}})
        ...     write_json(Path(name) / "evidence.json", {"methods": [{"method": "m", "auc": 0.5}]})
        ...     write_text(Path(name) / "predictions.csv", "exam_id,patient_id,label,method,score,fold,seed,split\\n"
        ...                f"x,p,1,m,{score},0,0,test\\n")
        >>> found = compare_runs("a", "b")
        >>> found.same, round(float(found.methods["largest change"][0]), 3), found.settings["what"].tolist()
        (False, 0.1, ['config: lr'])
    """
    one, two = read_run(Path(a)), read_run(Path(b))
    return RunComparison(_settings(one, two), _cases(one, two), _methods(one, two), _verdicts(one, two))


def read_run(folder: Path) -> RunFiles:
    """Read what a finished run left.

    Raises:
        BadInput: there is no finished run with scores.
    """
    needed = ("run.json", "predictions.csv", "evidence.json")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise BadInput(
            f"{folder} holds no finished run with scores: {', '.join(missing)} missing. Next: give the folder of a "
            "study, a demo or an evaluation"
        )
    for name in ("evidence.json", "plan.json"):
        refuse_changed_result(folder / name)
    record, evidence = read_run_record(folder), read_json(folder / "evidence.json")
    if record.get("status") not in (None, "done"):
        raise BadInput(f"the run in {folder} is not finished (status: {record['status']}). Next: run it to its end")
    plan = read_json(folder / "plan.json") if (folder / "plan.json").is_file() else {}
    scores = read_table(folder / "predictions.csv", PREDICTION_REQUIRED)
    scores = scores[scores["split"] == "test"].reset_index(drop=True)
    designs = evidence.get("designs")
    if designs is None:
        designs = {"": evidence}
    if "design" not in scores:
        scores["design"] = ""
    if "resample" not in scores:
        scores["resample"] = 0
    return RunFiles(folder, record, plan, scores, designs)


def _settings(a: RunFiles, b: RunFiles) -> pd.DataFrame:
    parts = {name: (a.record.get(name), b.record.get(name)) for name in ("command", "config", "seed", "inputs")}
    parts["code"] = (a.plan.get("code"), b.plan.get("code"))
    parts["versions"] = (a.record.get("versions"), b.record.get("versions"))
    parts["kernels"] = (a.record.get("kernels"), b.record.get("kernels"))
    parts["git"] = (a.record.get("git"), b.record.get("git"))
    rows = []
    for name, (first, second) in parts.items():
        left, right = dict(_leaves(canonical(first))), dict(_leaves(canonical(second)))
        for key in dict.fromkeys([*left, *right]):
            values = [side.get(key) for side in (left, right)]  # a setting left empty is as good as none
            if values[0] != values[1]:
                rows.append((f"{name}: {key}" if key else name, *(_short(value) for value in values)))
    return pd.DataFrame(rows, columns=["what", "A", "B"])


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of everything that is neither a mapping nor a list of mappings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{where}.{number}")
    elif value is not None or where:
        yield where, value


def _short(value: Any) -> str:
    text = ABSENT if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _cases(a: RunFiles, b: RunFiles) -> pd.DataFrame:
    one, two = (run.scores.drop_duplicates(CASE).set_index(CASE)["label"] for run in (a, b))
    rows = []
    for design in dict.fromkeys([*a.evidence, *b.evidence]):
        own = [side[side.index.get_level_values("design") == design] for side in (one, two)]
        both = own[0].index.intersection(own[1].index)
        rows.append(
            {
                "design": design, "both": len(both), "only A": len(own[0]) - len(both),
                "only B": len(own[1]) - len(both),
                "other label": int((own[0].loc[both] != own[1].loc[both]).sum()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _methods(a: RunFiles, b: RunFiles) -> pd.DataFrame:
    shared = a.scores.merge(b.scores, on=SCORE, suffixes=(" A", " B"))
    changes = shared.assign(change=(shared["score A"] - shared["score B"]).abs()).groupby(["design", "method"])
    rows = []
    for design in dict.fromkeys([*a.evidence, *b.evidence]):
        sides = [_by_method(run.evidence.get(design, {})) for run in (a, b)]
        for method in dict.fromkeys([*sides[0], *sides[1]]):
            first, second = (side.get(method, {}) for side in sides)
            known = first.get("auc") is not None and second.get("auc") is not None
            own = changes.get_group((design, method)) if (design, method) in changes.groups else shared.iloc[:0]
            rows.append(
                {
                    "design": design, "method": method, "AUC of A": _auc(first), "AUC of B": _auc(second),
                    "B − A": signed(second["auc"] - first["auc"]) if known else ABSENT, "scores": len(own),
                    "largest change": float(own["change"].max()) if len(own) else np.nan,
                    "rank correlation": _rank_correlation(own),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _rank_correlation(rows: pd.DataFrame) -> float:
    if len(rows) < 2 or rows["score A"].nunique() < 2 or rows["score B"].nunique() < 2:
        return np.nan
    return float(rows["score A"].corr(rows["score B"], method="spearman"))


def _by_method(evidence: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(row["method"]): row for row in evidence.get("methods", ())}


def _auc(row: Mapping[str, Any]) -> str:
    return estimate(fixed(row.get("auc")), interval(row.get("ci_low"), row.get("ci_high"))) if row else ABSENT


def _verdicts(a: RunFiles, b: RunFiles) -> pd.DataFrame:
    rows = []
    for design in dict.fromkeys([*a.evidence, *b.evidence]):
        sides = [
            {f"{c['a']} − {c['b']}": str(c.get("verdict") or ABSENT) for c in run.evidence.get(design, {}).get(
                "comparisons", ())}
            for run in (a, b)
        ]  # fmt: skip
        for pair in dict.fromkeys([*sides[0], *sides[1]]):
            first, second = (side.get(pair, ABSENT) for side in sides)
            if first != second:
                rows.append((design, pair, first, second))
    return pd.DataFrame(rows, columns=["design", "comparison", "A", "B"])


def _results_sentence(found: RunComparison) -> str:
    if found.same:
        return "Every held-out case has the same score in both runs."
    moved = found.methods[found.methods["largest change"] > 0]
    apart = int(found.methods["largest change"].isna().sum())
    parts = []
    if len(moved):
        largest = fixed(moved["largest change"].max())
        parts.append(f"methods with other scores: {len(moved)} of {len(found.methods)} (largest change {largest})")
    if apart:
        parts.append(f"without a case in common: {apart}")
    other = int(found.cases[["only A", "only B", "other label"]].to_numpy().sum())
    if other:
        parts.append(f"held-out cases that are not the same: {other}")
    return _sentence([*parts, f"verdicts that differ: {len(found.verdicts)}"])


def _reasons_sentence(found: RunComparison) -> str:
    kinds = found.settings["what"].str.split(":").str[0].value_counts(sort=False)
    if not len(kinds):
        return "Nothing that was recorded about how they were made differs."
    return _sentence([f"they differ in {', '.join(f'{name} ({count})' for name, count in kinds.items())}"])


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _text(value: Any) -> str:
    if isinstance(value, float):
        return ABSENT if np.isnan(value) else f"{value:.3g}"
    return str(value) or ABSENT
