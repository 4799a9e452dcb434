"""A study with every kind of row: significant, not significant, undefined, oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from embedprior.report import EvidenceSection, Report

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Reads a page: its text, its elements, and whether every tag is closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[tuple[tuple[str, ...], str]] = []
        self.groups: dict[str, list[str]] = {}
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script") and data.strip():
            self.pieces.append((tuple(self.open), data))
            css = self.elements[-1][1].get("class")
            if self.elements[-1][1].get("scope") == "rowgroup" and self.open[-1] == "th":
                self.groups[data] = []
            elif css == "name" and self.open[-1] == "span":
                self.groups[list(self.groups)[-1]].append(data)

    @property
    def text(self) -> str:
        """All text of the page, with ordinary spaces."""
        return " ".join(" ".join(data for _, data in self.pieces).replace("\u00a0", " ").split())


def method(name: str, auc: float | None, **other: Any) -> dict[str, Any]:
    row = {
        "method": name, "auc": auc, "se": 0.02, "ci_low": None, "ci_high": None, "ci_method": "logit",
        "n_pos": 101, "n_neg": 152, "n_patients": 253, "oracle": False, "reason": None,
    }  # fmt: skip
    if auc is not None:
        row |= {"ci_low": auc - 0.05, "ci_high": auc + 0.05}
    return row | other


def compared(a: str, b: str, **other: Any) -> dict[str, Any]:
    row = {
        "a": a, "b": b, "delta": 0.041, "ci_low": 0.01, "ci_high": 0.072, "z": 2.59, "p": 0.0096, "p_holm": 0.0192,
        "min_detectable_delta": 0.044, "reason": None,
    }  # fmt: skip
    return row | other


@pytest.fixture
def comparison() -> Callable[..., dict[str, Any]]:
    """Makes one comparison; keywords replace its values."""
    return compared


@pytest.fixture
def read_page() -> type[Page]:
    """Reads a page and fails when its tags are not closed in order."""
    return Page


@pytest.fixture
def evidence() -> dict[str, Any]:
    undefined = {
        "delta": None, "ci_low": None, "ci_high": None, "z": None, "p": None, "p_holm": None,
        "min_detectable_delta": None, "reason": "AUC undefined: only positives (7)",
        "verdict": "not testable at this size",
    }  # fmt: skip
    return {
        "unit": "patient",
        "methods": [
            method("ct_only", 0.951, oracle=True),
            method("cxr_only", 0.781),
            method("prior", 0.822),
            method("direct_head", 0.826),
            method("broken", None, se=None, reason="AUC undefined: only positives (7)"),
        ],
        "comparisons": [
            compared("ct_only", "cxr_only", delta=0.17, p=0.00001, p_holm=None, verdict="exploratory"),
            compared("prior", "cxr_only", verdict="supported"),
            compared(
                "prior", "direct_head", delta=-0.004, ci_low=-0.02, ci_high=0.012, z=-0.49, p=0.624, p_holm=0.624,
                min_detectable_delta=0.023, verdict="inconclusive",
            ),
            compared("broken", "cxr_only", **undefined),
        ],
    }  # fmt: skip


@pytest.fixture
def predictions() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    labels = np.repeat([1.0, 0.0], 30)
    frames = [
        pd.DataFrame(
            {
                "exam_id": [f"x{i}" for i in range(60)], "patient_id": [f"p{i}" for i in range(60)],
                "label": labels, "method": name, "score": gain * labels + rng.normal(size=60), "fold": 0, "seed": 0,
                "split": "test",
            }
        )
        for name, gain in (("ct_only", 3.0), ("cxr_only", 1.0), ("prior", 1.5), ("direct_head", 1.5))
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def report(evidence: dict[str, Any], predictions: pd.DataFrame) -> Report:
    section = EvidenceSection("Held-out patients", evidence, predictions, {"prior": "mean of 50 samples"})
    return Report("A study", "Does CT help?", ["The prior gains 0.041."], [section])


@pytest.fixture
def hostile(report: Report, evidence: dict[str, Any], predictions: pd.DataFrame) -> Report:
    """A report whose every text tries to be markup."""
    bad = "<script>alert('1')</script>|&amp;`x`"
    renamed = evidence | {
        "methods": [row | {"method": bad if row["method"] == "prior" else row["method"]} for row in evidence["methods"]]
    }
    table = pd.DataFrame({"exam_id": [bad], "reason": [bad]})
    section = EvidenceSection(bad, renamed, predictions.replace("prior", bad), {bad: bad}, [bad])
    return replace(
        report, title=bad, question=bad, lead=[bad], evidence=[section], flow=table, tables=[(bad, table, bad)],
        caveats=[bad], run={bad: bad, "config": {"a": {"b": bad}}}, failures=table,
    )  # fmt: skip
