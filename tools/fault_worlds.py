"""A small world for the checks of ``faults.py``: every command's output once, and the command that reads each file.

Everything is virtual: 30 patients as embeddings, 24 radiographs as pictures, two chests as volumes.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from embedprior.cache import write_cache
from embedprior.cli import main as embedprior
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput

STUDY = {
    "title": "faults",
    "label": "lesion",
    "caches": {"cxr": "caches/cxr", "ct": "caches/ct"},
    "seeds": [1],
    "as_published": "a check of files",
    "fit": {"hidden": 8, "steps": 20, "validate_every": 10},
    "prior": {
        "samples": 2,
        "steps": 4,
        "training": {
            "network": {"preset": "tiny", "depth": 1, "dim": 16, "inner": 16},
            "training": {"steps": 5, "batch": 8, "variance_nodes": 4, "variance_draws": 1, "validation_bins": 2},
        },
    },
    "designs": [{"name": "kfold", "split": "kfold", "folds": 3, "methods": ["cxr-only", "hinton-kd", "prior"]}],
}
KEEP = {
    "title": "pictures",
    "label": "lesion",
    "seeds": [1],
    "as_published": "a check of files",
    "keep": "all",
    "designs": [
        {"name": "cxr", "cases": "cxr", "folds": 3, "validation": True, "methods": ["constant", "logistic"],
         "reference": "constant"},
    ],
}  # fmt: skip
PRIOR = {
    "condition_cache": "cohort/caches/cxr", "target_cache": "cohort/caches/ct", "pairs": "cohort/pairs.csv",
    "splits": "cohort/splits.csv", "source": "cxr", "out": "prior",
    "prior": {"network": {"preset": "tiny", "depth": 1, "dim": 16, "inner": 16},
              "training": {"steps": 20, "batch": 8, "validate_every": 10, "checkpoint_every": 4, "variance_nodes": 4,
                           "variance_draws": 1, "validation_bins": 2}},
}  # fmt: skip

Answer = tuple[int, str]


def write_inputs(root: Path, patients: int = 30) -> None:
    """Write tables, two caches of embeddings, pictures, volumes and configurations."""
    rng = np.random.default_rng(0)
    folder = root / "cohort"
    folder.mkdir(parents=True)
    exams, pairs, splits = [], [], []
    for i in range(patients):
        exams += [(f"c{i:02d}", f"p{i:02d}", "CT", "", i % 2), (f"x{i:02d}", f"p{i:02d}", "CXR", "", i % 2)]
        pairs.append((f"q{i:02d}", f"p{i:02d}", f"x{i:02d}", f"c{i:02d}", 0, 1))
        part = "test" if i % 5 == 0 else "val" if i % 5 in (1, 2) else "train"
        splits.append((f"p{i:02d}", f"p{i:02d}", "d", 0, 0, part))
    write(folder / "exams.csv", exams, "exam_id patient_id modality path label:lesion")
    write(folder / "pairs.csv", pairs, "pair_id patient_id cxr_exam_id ct_exam_id offset_days label_agree")
    write(folder / "splits.csv", splits, "patient_id group_id design resample fold part")
    ct = rng.normal(size=(patients, 6)) + np.arange(patients)[:, None] % 2
    for name, letter, rows in (("ct", "c", ct), ("cxr", "x", ct[:, :4] + rng.normal(size=(patients, 4)))):
        spec = EncoderSpec(
            name=f"{name}-net", modality=name.upper(), dim=rows.shape[1], source="made", weights_sha256="none",
            licence="none", profile={}, pooling="none",
        )  # fmt: skip
        ids = [f"{letter}{i:02d}" for i in range(patients)]
        write_cache(folder / "caches" / name, spec, ids, ["0" * 64] * patients, rows.astype(np.float32))
    write_pictures(root / "pictures", rng)
    write_volumes(root / "ct")
    for name, settings in (("study", STUDY), ("keep", KEEP), ("prior", PRIOR)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(settings))


def write_pictures(folder: Path, rng: np.random.Generator, count: int = 24) -> None:
    """Write pictures of coarse noise, no two alike, half of them with a bright spot, and their exam table."""
    (folder / "png").mkdir(parents=True)
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    rows = []
    for n in range(count):
        noise = Image.fromarray((150 * rng.random((12, 12))).astype(np.uint8))
        spot = 100 * (n % 2) * np.exp(-((x - 0.45) ** 2 + (y - 0.3) ** 2) / 0.03)
        grey = np.asarray(noise.resize((96, 96), Image.Resampling.BICUBIC)) + spot
        Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(folder / "png" / f"{n:02d}.png")
        rows.append((f"e{n:02d}", f"p{n:02d}", "CXR", f"png/{n:02d}.png", "PA", n % 2))
    write(folder / "exams.csv", rows, "exam_id patient_id modality path view label:lesion")


def write_volumes(folder: Path) -> None:
    """Write two chests."""
    from embedprior.imaging.image_files import write_npz
    from embedprior.imaging.volume import Volume
    from embedprior.phantom import PhantomConfig, virtual_patient

    folder.mkdir()
    rows = []
    for n in range(2):
        patient = virtual_patient(PhantomConfig(), 3, n)
        origin = tuple(float(v) for v in patient.affine[:3, 3])
        write_npz(Volume(patient.volume, (5.25, 5.25, 5.5), origin), folder / f"v{n}.npz")
        rows.append((f"v{n}", f"p{n}", "CT", f"v{n}.npz"))
    write(folder / "exams.csv", rows, "exam_id patient_id modality path")


def write(path: Path, rows: Sequence[tuple[object, ...]], columns: str) -> None:
    """Write a table."""
    pd.DataFrame(rows, columns=columns.split()).to_csv(path, index=False)


def words_of(command: str, out: str | None = None) -> list[str]:
    """Return the words of a command of the world; it is run in the world's folder.

    Args:
        command: its name here, which is also the folder of its output.
        out: another folder for the output.
    """
    to = out or command
    caches = ["--cxr-cache", "cohort/caches/cxr", "--ct-cache", "cohort/caches/ct"]
    tables = ["--exams", "cohort/exams.csv", "--splits", "cohort/splits.csv", "--label", "lesion", "--made-by", ""]
    fit = ["--budget.fit.hidden", "8", "--budget.fit.steps", "20", "--budget.fit.validate-every", "10"]
    return {
        "embed": ["embed", "--cohort", "pictures/exams.csv", "--encoder", "pixels-128", "--shard-exams", "4",
                  "--batch-size", "4", "--out", to],
        "drr": ["drr", "--cohort", "ct/exams.csv", "--size", "48", "--poses", "2", "--out", to],
        "prior": ["train", "prior", "--config", "prior.yaml", "--out", to],
        "teacher": ["train", "teacher", "--cache", "cohort/caches/ct", *tables, "--teacher.fit.steps", "20",
                    "--teacher.fit.hidden", "8", "--out", to],
        "student": ["train", "student", "--method", "hinton-kd", *caches, *tables, "--pairs", "cohort/pairs.csv", *fit,
                    "--out", to],
        "generated": ["generate", "--prior", "prior", "--cache", "cohort/caches/cxr", "--head", "teacher", "--samples",
                      "2", "--steps", "2", "--out", to],
        "run": ["study", "run", "--config", "study.yaml", "--data", "cohort", "--out", to],
        "keep": ["study", "run", "--config", "keep.yaml", "--data", "pictures", "--out", to],
        "bundle": ["bundle", "--study", "keep", "--method", "logistic", "--out", to],
        "evaluation": ["evaluate", "run/predictions.csv", "--reference", "cxr-only", "--no-bootstrap", "--no-figures",
                       "--out", to],
    }[command]  # fmt: skip


COMMANDS = ("embed", "drr", "prior", "teacher", "student", "generated", "run", "keep", "bundle", "evaluation")


def call(*words: str | Path) -> Answer:
    """Run one command in this process; return its exit code and all it wrote."""
    written = io.StringIO()
    with contextlib.redirect_stderr(written), contextlib.redirect_stdout(written):
        try:
            code = embedprior([str(word) for word in words])
        except Exception as error:
            return 1, f"{written.getvalue()}\nTraceback: {type(error).__name__}: {error}"
    return code, written.getvalue()


def child(work: Callable[[], int], before: Callable[[], object] = lambda: None) -> Answer:
    """Do something in a forked process; return its exit code (minus the signal that ended it) and all it wrote."""
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                before()
                code = work()
            except BaseException as error:
                os.write(2, f"Traceback: {type(error).__name__}: {error}\n".encode())
            finally:
                with contextlib.suppress(OSError, ValueError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        file.seek(0)
        return os.waitstatus_to_exitcode(status), file.read().decode(errors="replace")


def build(root: Path) -> None:
    """Write the inputs, and run every command once.

    Raises:
        AssertionError: a command failed.
    """
    write_inputs(root)
    os.chdir(root)
    for command in COMMANDS:
        code, said = call(*words_of(command))
        assert code == 0, f"{command}: exit {code}\n{said}"


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
    """

    pattern: str
    read: Callable[[Path], Answer]
    results: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    name: str = ""

    def path(self) -> Path:
        """Return the file to damage, in the world's folder."""
        found = sorted(Path().glob(self.pattern))[0]
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
    Kind("prior/run.json", verified),
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
    *(Kind(MODEL, into_new("bundle"), name=name)
      for name in ("linear.safetensors", "artifact.json", "fitted.json", "reference.safetensors")),
    Kind("keep/artifacts/caches/*/shard-*", again("keep"), ("keep/predictions.csv",)),
    *(Kind(f"bundle/{name}", predicted)
      for name in ("manifest.json", "config.json", "README.md", "models/0/fitted.json", "models/0/linear.safetensors",
                   "models/0/reference.safetensors")),
)  # fmt: skip
EVALUATION_KINDS = tuple(
    Kind(f"evaluation/{name}", verified)
    for name in ("evidence.json", "run.json", "summary.md", "table.md", "table.tex")
)
KINDS = {
    "study": STUDY_KINDS, "evaluation": EVALUATION_KINDS, "embed": EMBED_KINDS, "drr": DRR_KINDS, "models": MODEL_KINDS,
    "bundle": BUNDLE_KINDS,
}  # fmt: skip
"""One file of each kind; ``metrics.jsonl`` is a log that nothing reads."""
