"""A small world for the checks of ``faults.py``: every command's output once.

Everything is virtual: 30 patients as embeddings, 24 radiographs as pictures, two chests as volumes, reports of a word.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from embedprior.cache import write_cache
from embedprior.cli import main as embedprior
from embedprior.encoders.base import EncoderSpec

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
HUBCONF = """
dependencies = ["torch"]
from torch import nn
class Tiny(nn.Module):
    embed_dim = 4
    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 4, 8, stride=8)
    def forward(self, x):
        return self.net(x).amax((2, 3))
def tiny(pretrained=True):
    return Tiny()
"""

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
    cxr, strangers = ct[:, :4] + rng.normal(size=(patients, 4)), rng.normal(size=(patients, 4))
    for name, letter, digit, rows in (("ct", "c", "0", ct), ("cxr", "x", "0", cxr), ("strangers", "y", "1", strangers)):
        net = "ct" if name == "ct" else "cxr"
        spec = EncoderSpec(
            name=f"{net}-net", modality=net.upper(), dim=rows.shape[1], source="made", weights_sha256="none",
            licence="none", profile={}, pooling="none",
        )  # fmt: skip
        ids = [f"{letter}{i:02d}" for i in range(patients)]
        write_cache(folder / "caches" / name, spec, ids, [digit * 64] * patients, rows.astype(np.float32))
    write_reader(root, cxr, rng)
    write_pictures(root / "pictures", rng)
    write_volumes(root / "ct")
    write_export(root)
    for name, settings in (("study", STUDY), ("keep", KEEP), ("prior", PRIOR)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(settings))


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "no", "lesion")


def write_reader(root: Path, cxr: np.ndarray[Any, Any], rng: np.random.Generator) -> None:
    """Write a tiny BERT as the Hugging Face hub has them, prompts, and an alignment whose reports it would embed."""
    import torch
    import transformers

    from embedprior.alignment.config import AlignmentConfig
    from embedprior.alignment.model import Alignment, new_network
    from embedprior.encoders.base import encoder_key
    from embedprior.encoders.registry import create_encoder
    from embedprior.runs import hash_of

    text = root / "bert"
    text.mkdir()
    (text / "vocab.txt").write_text("\n".join(WORDS))
    shape = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=12,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transformers.BertModel(shape).save_pretrained(text)
    transformers.BertTokenizerFast(vocab=str(text / "vocab.txt")).save_pretrained(text)
    (root / "prompts.yaml").write_text("template: {positive: ['{}'], negative: ['no {}']}\n")
    rows = {"cxr": cxr.astype(np.float32), "ct": cxr.astype(np.float32)}
    rows["report"] = rng.normal(size=(len(cxr), shape.hidden_size)).astype(np.float32)
    network = new_network(rows, AlignmentConfig(train_sides=("cxr", "ct", "report"), dim=cxr.shape[1]))
    caches = {"cxr": "a", "ct": "b", "report": hash_of(encoder_key(create_encoder(f"hf-text:{text}").spec))}
    Alignment(network, caches, {"train": [], "val": []}).save(root / "trimodal")


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
    people = [f"p{n:02d}" for n in range(count)]
    parts = [(name, name, "d", 0, 0, ("train", "train", "val", "test")[n // 2 % 4]) for n, name in enumerate(people)]
    write(folder / "splits.csv", parts, "patient_id group_id design resample fold part")


def write_export(root: Path) -> None:
    """Write a hospital's table of the pictures, a table of reports, and the code of a small network."""
    export = [(f"p{n:02d}", f"png/{n:02d}.png", "20210325", "PA", ("no", "yes")[n % 2]) for n in range(24)]
    write(root / "pictures" / "labels.csv", export, "PatientID File StudyDate ViewPosition lesion")
    write(root / "reports.csv", [(f"c{n:02d}", f"number {n}") for n in range(30)], "exam findings")
    strangers = [(f"y{n:02d}", f"s{n:02d}", "CXR", "", n % 2) for n in range(30)]
    write(root / "strangers.csv", strangers, "exam_id patient_id modality path label:lesion")
    (root / "hub").mkdir()
    (root / "hub" / "hubconf.py").write_text(HUBCONF)


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
    to = out or FOLDER_OF.get(command, command)
    caches = ["--cxr-cache", "cohort/caches/cxr", "--ct-cache", "cohort/caches/ct"]
    tables = ["--exams", "cohort/exams.csv", "--splits", "cohort/splits.csv", "--label", "lesion", "--made-by", ""]
    splits = ["--exams", "cohort/exams.csv", "--splits", "cohort/splits.csv"]
    pairs = ["--pairs", "cohort/pairs.csv"]
    probe = ["--cxr", "cohort/caches/cxr", *splits]
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
        "reported": ["evaluate", "run/predictions.csv", "--reference", "cxr-only", "--no-bootstrap", "--report",
                     "--out", to],
        "encoder": ["train", "encoder", "--config", "cxr", "--encoder", "torchhub:hub/tiny", "--exams",
                    "pictures/exams.csv", "--splits", "pictures/splits.csv", "--label", "lesion",
                    "--options.random_init", "true", "--training.epochs", "2", "--out", to],
        "alignment": ["train", "alignment", "--config", "pairs", *caches, *splits, *pairs, "--alignment.dim", "4",
                      "--alignment.steps", "10", "--alignment.validate-every", "5", "--out", to],
        "aligned": ["align", "--alignment", "alignment", "--side", "cxr", "--cache", "cohort/caches/cxr", "--out", to],
        "aligned_ct": ["align", "--alignment", "alignment", "--side", "ct", "--cache", "cohort/caches/ct", "--out", to],
        "final": ["train", "final", "--study", "keep", "--method", "logistic"],
        "retrieval": ["evaluate-embeddings", "retrieval", "--cxr", "aligned", "--ct", "aligned_ct", *splits, *pairs,
                      "--k", "1", "--out", to],
        "probe": ["evaluate-embeddings", "linear-probe", *probe, "--bootstrap", "20", "--out", to],
        "few": ["evaluate-embeddings", "few-shot", *probe, "--fraction", "1", "--out", to],
        "other": ["evaluate-embeddings", "external", *probe, "--to-cxr", "cohort/caches/strangers", "--to-exams",
                  "strangers.csv", "--out", to],
        "zero": ["evaluate-embeddings", "zero-shot", *probe, "--alignment", "trimodal", "--text-encoder",
                 "hf-text:bert", "--prompts", "prompts.yaml", "--out", to],
        "built": ["cohort", "build", "--cxr", "pictures/png", "--labels", "pictures/labels.csv", "--label",
                  "lesion=lesion", "--out", to],
        "checked": ["cohort", "check", "built"],
        "divided": ["cohort", "split", "built", "--label", "lesion", "--folds", "3"],
        "imported": ["cohort", "import", "--source", "tables", "--data", "pictures", "--out", to],
        "merged": ["cohort", "merge", "pictures", "built", "--out", to],
        "reports": ["cohort", "reports", "--table", "reports.csv", "--key", "exam", "--section", "findings=findings",
                    "--exams", "cohort/exams.csv", *pairs, "--out", to],
        "layout": ["report", "keep", "--layout", "pilot", "--out", to],
        "remade": ["report", "keep", "--out", to],
        "audited": ["images", "check", "pictures/png", "--limit", "2", "--out", "audited/findings.csv",
                    "--contact-sheet", "audited/sheet.png"],
        "exported": ["cache", "export", "embed", "--out", "exported/rows.npy"],
        "scored": ["predict", "pictures/png/00.png", "pictures/png/01.png", "--bundle", "bundle", "--out",
                   "scored/scores.csv"],
        "planned": ["study", "plan", "--config", "study.yaml", "--data", "cohort", "--out", to],
        "compared": ["report", "--compare", "run", "run", "--out", "compared/difference.md"],
    }[command]  # fmt: skip


FOLDER_OF = {"final": "keep/final/cxr/logistic", "checked": "built", "divided": "built"}
"""Commands whose output lies in another folder than that of their name here."""
COMMANDS = ("embed", "drr", "prior", "teacher", "student", "generated", "run", "keep", "final", "bundle", "evaluation",
            "reported", "encoder", "alignment", "aligned", "aligned_ct", "retrieval", "probe", "few", "other", "zero",
            "built", "checked", "divided", "imported", "merged", "reports", "layout", "remade", "audited", "exported",
            "scored", "planned", "compared")  # fmt: skip
NEEDS_ATTENTION = {"audited"}
"""Commands that find something to decide on in this world: they end with 3."""


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
        for folder in ("audited", "scored"):
            Path(folder).mkdir(exist_ok=True)
        code, said = call(*words_of(command))
        assert code == (3 if command in NEEDS_ATTENTION else 0), f"{command}: exit {code}\n{said}"
