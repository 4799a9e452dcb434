"""Every setting of a study is read by the code that runs it, not only by the checks of the configuration itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from embedprior import study
from embedprior.students.config import Budget
from embedprior.study.config import (
    Assumed,
    CacheChoice,
    Design,
    EncoderChoice,
    Hypothesis,
    InferenceConfig,
    MethodConfig,
    PriorChoice,
    StudyConfig,
)

from .conftest import BASE

CLASSES = (
    Assumed,
    CacheChoice,
    InferenceConfig,
    Design,
    EncoderChoice,
    Hypothesis,
    PriorChoice,
    MethodConfig,
    StudyConfig,
)
OF_A_DESIGN = ("fit_seeds", "seeds_of", "balance_of", "label_share")
"""Methods of the configuration that hand a setting on to the code that runs it."""
PICTURES = {"source", "missing_images", "duplicates", "batch_size", "encoder", "name", "options", "pixels"}
"""Read where pictures are embedded, which ``tests/cli/test_study_run.py`` does: here their text is looked for."""


def test_every_setting_is_read(run, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[tuple[str, str]] = set()

    def watched(cls):
        plain = cls.__getattribute__

        def get(self, name):
            caller = sys._getframe(1).f_code
            own_check = caller.co_filename.endswith("study/config.py") and caller.co_name not in OF_A_DESIGN
            if name in cls.model_fields and not own_check and "pydantic" not in caller.co_filename:
                read.add((cls.__name__, name))
            return plain(self, name)

        monkeypatch.setattr(cls, "__getattribute__", get)

    for cls in CLASSES:
        watched(cls)
    methods = {"methods": ["cxr-only", "mine"]}
    code, _ = run(
        methods={"mine": {"method": "prior", "options": {}}},
        designs=[
            {"name": "kfold", "folds": 2, "split": "kfold", **methods, "question": "why?"},
            {"name": "mc", "split": "resamples", "resamples": 1, "held_out_share": 0.3, **methods},
            {"name": "out", "split": "external", "external": ["C"], "validation": True, **methods},
        ],
        hypotheses=[{"name": "H", "claim": "c", "design": "kfold", "a": "mine", "b": "cxr-only"}],
        metrics=["brier"], sweep={"label_fraction": [0.9]},
    )  # fmt: skip
    assert code == 0
    unread = [f"{c.__name__}.{f}" for c in CLASSES for f in c.model_fields if (c.__name__, f) not in read]
    folder = Path(study.__file__).parent
    text = "".join(p.read_text() for p in sorted(folder.glob("*.py")) if p.name != "config.py")
    pictures = [name for name in unread if f".{name.split('.')[1]}" in text and name.split(".")[1] in PICTURES]
    assert sorted(set(unread) - set(pictures)) == []
    assert set(BASE) <= set(StudyConfig.model_fields)


def test_a_study_and_a_single_fit_draw_alike_by_default() -> None:
    ours, theirs = PriorChoice(), Budget()
    assert (ours.samples, ours.sampler, ours.steps) == (theirs.samples, theirs.sampler, theirs.steps)
    # Below that, chance reorders cases of like risk.
    assert ours.samples >= 64
