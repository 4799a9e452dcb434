"""What ``faults.py`` damages in its world: one file of each kind, and the command that reads it next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from fault_worlds import Answer, call, words_of

from embedprior.errors import BadInput


def loaded(folder: Path) -> Answer:
    """Read a fitted method with the package's own function, as its user does."""
    import embedprior as package

    try:
        package.load_fitted(folder)
    except BadInput as error:
        return 2, f"error: {error}"
    except Exception as error:
        return 1, f"Traceback: {type(error).__name__}: {error}"
    return 0, ""


@dataclass(frozen=True)
class Kind:
    """Files of one kind, and what is done to see whether damage of one is noticed.

    Attributes:
        pattern: of the file below the world's folder; the first that fits is damaged.
        read: runs the next command that reads it, in the world's folder.
        results: patterns of what that command makes: it must be as it was before. None: it must be refused.
        prepare: patterns of what is deleted first: what would be reused instead of what is damaged.
        name: of the file beside the one that fits, where that is the one to damage.
        models: table of the models of which one is damaged; empty: the first that fits.
    """

    pattern: str
    read: Callable[[Path], Answer]
    results: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    name: str = ""
    models: str = ""

    def path(self) -> Path:
        """Return the file to damage, in the world's folder."""
        fitting = sorted(Path().glob(self.pattern))
        if self.models:
            used = {Path(folder).name for folder in pd.read_csv(self.models)["model"]}
            fitting = [path for path in fitting if path.parent.name in used]
        found = fitting[0]
        return found.with_name(self.name) if self.name else found

    @property
    def shown(self) -> str:
        """The pattern of the file itself."""
        return f"{self.pattern.rpartition('/')[0]}/{self.name}" if self.name else self.pattern


def again(command: str) -> Callable[[Path], Answer]:
    """Run a command into its folder once more."""
    return lambda path: call(*words_of(command))


def into_new(command: str) -> Callable[[Path], Answer]:
    """Run a command into a new folder."""
    return lambda path: call(*words_of(command, "new"))


def verified(path: Path) -> Answer:
    """Run ``verify`` on the output folder that a file lies in."""
    return call("verify", path.parts[0])


def evaluated(path: Path) -> Answer:
    """Evaluate a table of predictions."""
    return call("evaluate", path, "--reference", "cxr-only", "--no-bootstrap", "--no-figures", "--out", "evaluated")


def embedded(path: Path) -> Answer:
    """Embed the images that ``drr`` left."""
    return call("embed", "--cohort", "drr/exams.csv", "--encoder", "pixels-128", "--modality", "DRR", "--out", "new")


def exported(path: Path) -> Answer:
    """Export a cache."""
    return call("cache", "export", path.parts[0], "--out", "exported.npy")


def predicted(path: Path) -> Answer:
    """Score a radiograph with the bundle."""
    return call("predict", "pictures/png/00.png", "--bundle", "bundle", "--out", "scores.csv")


def trained_on(path: Path) -> Answer:
    """Go on with a finished training."""
    return call(*words_of("prior"), "--prior.training.steps", "24")


def compared(path: Path) -> Answer:
    """Compare two studies."""
    return call("report", "--compare", "run", "keep")


def encoded(path: Path) -> Answer:
    """Embed with the encoder that was trained."""
    return call("embed", "--cohort", "pictures/exams.csv", "--encoder", "encoder", "--limit", "2", "--out", "new")


def scored(reference: str) -> Callable[[Path], Answer]:
    """Evaluate a table of predictions against one of its methods."""
    return lambda path: call(
        "evaluate", path, "--reference", reference, "--no-bootstrap", "--no-figures", "--out", "new"
    )


def bundled_final(path: Path) -> Answer:
    """Make a bundle of the final models."""
    return call("bundle", "--study", "keep", "--method", "logistic", "--final", "--out", "new")


def cohort_checked(path: Path) -> Answer:
    """Check the cohort that a table belongs to."""
    return call("cohort", "check", path.parts[0])


STUDY_KINDS = (
    *(Kind(f"cohort/{name}", again("run")) for name in ("exams.csv", "pairs.csv")),
    *(Kind(f"cohort/caches/cxr/*/{name}", again("run"), ("run/predictions.csv",))
      for name in ("shard-*", "manifest.json", "views/*.csv", "views/*.sha256")),
    Kind("cohort/caches/cxr/*/index.csv", lambda path: call("cache", "verify", "cohort/caches/cxr")),
    Kind("cohort/caches/cxr/current", again("run"), ("run/predictions.csv",)),
    *(Kind(f"run/artifacts/fit/*/{name}", again("run"), ("run/predictions.csv",))
      for name in ("artifact.json", "predictions.csv", "fit.json")),
    *(Kind(f"run/artifacts/{name}", again("run"), ("run/predictions.csv",), ("run/artifacts/fit",))
      for name in ("teacher/*/artifact.json", "teacher/*/*.safetensors", "teacher/*/head.json", "prior/*/artifact.json",
                   "prior/*/prior.safetensors", "prior/*/prior.json")),
    Kind("run/plan.json", again("run"), ("run/predictions.csv",)),
    Kind("run/predictions.csv", evaluated),
    Kind("run/evidence.json", compared),
    *(Kind(f"run/{name}", verified)
      for name in ("run.json", "summary.md", "report.html", "support.csv", "cohort/exams.csv", "cohort/pairs.csv",
                   "cohort/flow.csv")),
    Kind("run/cohort/splits.csv", again("run"), ("run/predictions.csv",)),
)  # fmt: skip
CACHE_FILES = ("shard-*", "manifest.json", "index.csv", "views/*.csv", "views/*.sha256")
EMBED_KINDS = (
    *(Kind(f"embed/pix*/{name}", again("embed"), ("embed/pix*/shard-*", "embed/pix*/manifest.json", "embed/pix*/*.csv"))
      for name in CACHE_FILES),
    Kind("embed/pix*/shard-*", exported),
    Kind("embed/current", exported),
    *(Kind(f"embed/{name}", verified) for name in ("run.json", "summary.md")),
)  # fmt: skip
DRR_MADE = ("drr/images/*.png", "drr/exams.csv", "drr/pairs.csv")
DRR_KINDS = (
    Kind("drr/images/*.png", embedded),
    Kind("drr/exams.csv", embedded),
    *(Kind(f"drr/{name}", verified)
      for name in ("images/*.json", "pairs.csv", "contact_sheet.png", "run.json", "summary.md")),
    *(Kind(f"drr/artifacts/drr/*/{name}", again("drr"), DRR_MADE)
      for name in ("artifact.json", "pose-000.png", "pose-001.json", "ct.json")),
)  # fmt: skip
MODEL_KINDS = (
    *(Kind(f"prior/{name}", into_new("generated")) for name in ("prior.json", "prior.safetensors")),
    *(Kind(f"prior/{name}", trained_on) for name in ("resume.json", "resume-*.safetensors")),
    *(Kind(f"prior/{name}", verified) for name in ("run.json", "summary.md")),
    *(Kind(f"teacher/{name}", into_new("generated")) for name in ("teacher.json", "head.safetensors", "head.json")),
    Kind("teacher/predictions.csv", evaluated),
    *(Kind(f"teacher/{name}", verified) for name in ("run.json", "summary.md", "teacher_auc.json")),
    *(Kind(f"student/{name}", lambda path: loaded(path.parent))
      for name in ("fitted.json", "student.safetensors", "network.json")),
    Kind("student/predictions.csv", evaluated),
    *(Kind(f"student/{name}", verified) for name in ("run.json", "summary.md")),
    *(Kind(f"generated/*/*/{name}", again("generated"), ("generated/*/*/shard-*", "generated/*/*/manifest.json"))
      for name in ("shard-*", "manifest.json")),
    *(Kind(f"generated/{name}", verified) for name in ("scores.csv", "run.json", "summary.md")),
)  # fmt: skip
MODEL = "keep/artifacts/model/*/linear.safetensors"
BUNDLE_KINDS = (
    *(Kind(f"keep/{name}", into_new("bundle"))
      for name in ("predictions.csv", "evidence.json", "models.csv", "cohort/flow.csv")),
    *(Kind(MODEL, into_new("bundle"), name=name, models="keep/models.csv")
      for name in ("linear.safetensors", "artifact.json", "fitted.json", "reference.safetensors")),
    Kind("keep/artifacts/caches/*/shard-*", again("keep"), ("keep/predictions.csv",)),
    *(Kind(f"bundle/{name}", predicted)
      for name in ("manifest.json", "config.json", "README.md", "models/0/fitted.json", "models/0/linear.safetensors",
                   "models/0/reference.safetensors")),
)  # fmt: skip
REPORT_FILES = ("figures/*.png", "figures/*.csv", "tables/*.csv", "tables/*.tex")
EVALUATION_KINDS = (
    *(Kind(f"evaluation/{name}", verified)
      for name in ("evidence.json", "run.json", "summary.md", "table.md", "table.tex")),
    *(Kind(f"reported/{name}", verified)
      for name in ("roc.png", "report.html", "report.md", "report.json", *REPORT_FILES)),
)  # fmt: skip
ENCODER_KINDS = (
    *(Kind(f"encoder/{name}", encoded) for name in ("encoder.json", "encoder.safetensors")),
    Kind("encoder/predictions.csv", scored("start")),
    *(Kind(f"encoder/start/tor*/{name}", verified) for name in CACHE_FILES),
    *(Kind(f"encoder/{name}", verified) for name in ("start/current", "run.json", "summary.md")),
    *(Kind(f"alignment/{name}", into_new("aligned")) for name in ("alignment.json", "alignment.safetensors")),
    *(Kind(f"alignment/{name}", verified) for name in ("run.json", "summary.md")),
    *(Kind(f"aligned/al*/{name}", again("retrieval"), ("retrieval/ranks.csv", "retrieval/retrieval.json"))
      for name in ("shard-*", "manifest.json", "views/*.csv", "views/*.sha256")),
    Kind("aligned/al*/index.csv", again("aligned"), ("aligned/al*/index.csv",)),
    Kind("aligned/current", again("retrieval"), ("retrieval/ranks.csv", "retrieval/retrieval.json")),
)  # fmt: skip
FINAL = "keep/final/cxr/logistic"
FINAL_KINDS = (
    *(Kind(f"{FINAL}/{name}", bundled_final) for name in ("models.csv", "predictions.csv", "run.json")),
    Kind(f"{FINAL}/summary.md", verified),
    *(
        Kind(MODEL, bundled_final, name=name, models=f"{FINAL}/models.csv")
        for name in ("linear.safetensors", "artifact.json")
    ),
    *(Kind(f"keep/{name}", again("final")) for name in ("run.json", "plan.json", "evidence.json")),
    Kind("keep/run.json", into_new("remade")),
    Kind("run/run.json", compared),
    Kind("run/run.json", lambda path: call("cache", "trace", "run")),
)
TRANSFER_KINDS = (
    *(Kind(f"retrieval/{name}", verified) for name in ("retrieval.json", "ranks.csv", "run.json", "summary.md")),
    Kind("probe/predictions.csv", scored("cxr")),
    Kind("probe/evidence.json", verified),
    *(Kind(f"{verb}/{name}", verified)
      for verb in ("few", "other", "zero") for name in ("predictions.csv", "evidence.json")),
    *(Kind(f"{verb}/{name}", verified)
      for verb in ("probe", "few", "other", "zero") for name in ("run.json", "summary.md")),
    *(Kind(f"trimodal/{name}", into_new("zero")) for name in ("alignment.json", "alignment.safetensors")),
    *(Kind(f"bert/{name}", into_new("zero")) for name in ("model.safetensors", "config.json", "tokenizer.json")),
)  # fmt: skip
COHORT_KINDS = (
    *(Kind(f"{folder}/{name}", cohort_checked)
      for folder in ("built", "imported", "merged", "reports") for name in ("exams.csv", "pairs.csv")),
    Kind("built/splits.csv", cohort_checked),
    *(Kind(f"built/{name}", verified) for name in ("findings.csv", "duplicates.csv", "dropped.csv")),
    *(Kind(f"{folder}/{name}", verified)
      for folder in ("built", "imported", "merged") for name in ("flow.csv", "run.json", "summary.md")),
    *(Kind(f"{folder}/study.yaml", verified) for folder in ("built", "merged")),
    *(Kind(f"reports/{name}", verified) for name in ("reports/*.txt", "run.json", "summary.md")),
    *(Kind(f"audited/{name}", verified)
      for name in ("findings.csv", "findings.private.csv", "sheet.png", ".checksums.json")),
)  # fmt: skip
REPORT_KINDS = (
    *(Kind(f"keep/{name}", into_new("remade"))
      for name in ("report.json", "predictions.csv", "evidence.json", "figures/cases.png", "figures/cases.csv")),
    *(Kind(f"keep/{name}", verified) for name in ("report.md", "figures/*roc.png", "figures/*roc.csv", "tables/*.csv",
                                                  "tables/*.tex")),
    *(Kind(f"keep/{name}", into_new("layout")) for name in ("support.csv", "cohort/exams.csv")),
    *(Kind(f"layout/{name}", verified)
      for name in ("layout.md", "table_1.csv", "table_1.tex", "figure_3.png", "figure_3.csv", ".checksums.json")),
    *(Kind(f"remade/{name}", verified)
      for name in ("report.html", "report.md", "report.json", ".checksums.json", *REPORT_FILES)),
    *(Kind(f"planned/{name}", lambda path: call(*words_of("planned")))
      for name in ("plan.json", "cohort/splits.csv")),
    *(Kind(f"planned/cohort/{name}", verified) for name in ("flow.csv", "duplicates.csv")),
    *(Kind(f"exported/{name}", verified) for name in ("rows.npy", "rows.csv")),
    Kind("scored/scores.csv", again("scored"), ("scored/scores.csv",)),
    Kind("compared/difference.md", verified),
)  # fmt: skip
KINDS = {
    "study": STUDY_KINDS, "evaluation": EVALUATION_KINDS, "embed": EMBED_KINDS, "drr": DRR_KINDS, "models": MODEL_KINDS,
    "encoder": ENCODER_KINDS, "bundle": BUNDLE_KINDS, "final": FINAL_KINDS, "transfer": TRANSFER_KINDS,
    "cohort": COHORT_KINDS, "report": REPORT_KINDS,
}  # fmt: skip
"""One file of each kind; ``metrics.jsonl`` is a log that nothing reads."""
