"""``embedprior train student``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from embedprior.students.base import Cases, Fitted
    from embedprior.students.config import TrainStudentConfig

HELP = "fit one method on caches and tables, save it without pickle, and score the validation and held-out cases"


def main(argv: Sequence[str]) -> int:
    """Fit one method; returns the exit code. Everything that can be refused is refused before a file is written.

    Raises:
        BadInput: unknown method or option, no CT for a method that learns from it, cases that do not allow a fit (one
            class only, say), or see ``students.tables.load``.
        EmbedpriorError: the method read back from its folder scores differently.
    """
    from embedprior.cli.options import parse
    from embedprior.errors import DONE, BadInput, EmbedpriorError, choose
    from embedprior.students.config import TrainStudentConfig
    from embedprior.students.registry import build_method, methods

    config, _ = parse(TrainStudentConfig, "student", argv, "embedprior train student", HELP, "demo")
    method = build_method(config.method, config.budget, **({"inputs": config.inputs} | config.options))
    info = choose("method", config.method, methods())
    missing = {"CT cache": config.ct_cache is None, "pair table": config.pairs is None}
    if info.uses_ct and any(missing.values()):
        raise BadInput(
            f"method '{config.method}' learns from CT, and no {' and no '.join(w for w in missing if missing[w])} is "
            "given. Next: --ct_cache DIR --pairs FILE, or a method without CT (embedprior methods)"
        )
    from embedprior.runs import Run, one_thread
    from embedprior.students.base import CannotFit
    from embedprior.students.storage import load_fitted, refuse_unsaveable, save_fitted
    from embedprior.students.tables import load
    from embedprior.tables import write_table

    loaded = load(config, info.needs_teacher)
    try:
        with one_thread():
            fitted = method.fit(loaded.data, config.seed)
    except CannotFit as error:
        raise BadInput(f"method '{config.method}' can't be fitted on {config.exams}: {error}") from error
    refuse_unsaveable(fitted, config.method)
    out = Path(config.out)
    run = Run(out, "train student", config, config.seed, loaded.inputs)
    account = getattr(fitted, "account", None)
    for look in account.history if account is not None else ():
        run.metrics.write(event="look", **look)
    save_fitted(fitted, out, config.method)
    scored = {part: cases if info.needs_ct else cases.without_ct() for part, cases in loaded.scored.items()}
    predictions = _predictions(config, fitted, scored)
    if len(predictions):
        again = _predictions(config, load_fitted(out)[0], scored)
        if not predictions.equals(again):
            raise EmbedpriorError(f"the method read back from {out} scores differently from the one that was saved.")
        write_table(predictions, out / "predictions.csv")
    text = _summary(config, account, _aucs(predictions))
    run.finish(text, [])
    print(text)
    print(f"student: {out}", file=sys.stderr)
    return DONE


def _predictions(config: TrainStudentConfig, fitted: Fitted, scored: Mapping[str, Cases]) -> pd.DataFrame:
    import pandas as pd

    frames = [
        pd.DataFrame(
            {
                "exam_id": list(cases.exam_ids), "patient_id": list(cases.patient_ids),
                "label": cases.label.astype(int), "method": config.method, "score": fitted.scores(cases),
                "fold": config.fold, "seed": config.seed, "split": part,
            }
        )
        for part, cases in scored.items()
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _aucs(predictions: pd.DataFrame) -> list[tuple[str, str, str]]:
    import numpy as np

    from embedprior.evidence import delong
    from embedprior.evidence.intervals import auc_interval

    rows = []
    for part, text in (("val", "validation (chose the checkpoint: too high)"), ("test", "held out")):
        own = predictions[predictions["split"] == part] if len(predictions) else predictions
        if not len(own):
            rows.append((text, "no labelled case", ""))
            continue
        joint = delong(own["label"].to_numpy(), own["score"].to_numpy(), clusters=own["patient_id"].to_numpy())
        ends = auc_interval(
            float(joint.auc[0]), float(joint.covariance[0, 0]), joint.independent_pairs, reason=joint.reason
        )
        bounds = ends.reason if ends.reason else f"{ends.low:.3f}–{ends.high:.3f}"
        auc = f"{joint.auc[0]:.3f}" if np.isfinite(joint.auc[0]) else "–"
        rows.append((text, f"{auc} ({bounds})", f"{joint.n_pos} / {joint.n_neg}"))
    return rows


def _summary(config: TrainStudentConfig, account: Any, aucs: Sequence[tuple[str, str, str]]) -> str:
    lines = [f"# {config.method} for {config.label}", ""]
    if account is not None:
        losses = f"; losses: {', '.join(account.losses)}" if account.losses else ""
        frozen = account.total - account.trainable
        reads = f" ({account.total:,} with the frozen head it reads)" if frozen else ""
        lines += [
            f"{account.trainable:,} parameter{'s' if account.trainable != 1 else ''} trained{reads}; "
            f"{account.steps:,} steps, {account.seconds:.1f} s{losses}.",
            "",
        ]
    lines += ["| cases | AUC (95 % CI) | pos / neg |", "| --- | ---: | ---: |"]
    lines += [f"| {part} | {auc} | {counts} |" for part, auc, counts in aucs]
    return "\n".join([*lines, "", "Research use only: not a medical device, not for diagnosis.", ""])
