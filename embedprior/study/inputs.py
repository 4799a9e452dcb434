"""What the fits of a study read: its caches and an external cohort's, and the cases, pairs and CTs of one fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from embedprior.cache import EmbeddingCache
from embedprior.cache.format import read_manifest
from embedprior.cache.verify import open_verified
from embedprior.cohort.base import Cohort, flow_step, of_views
from embedprior.cohort.splits import Fold, Part, held_out_cohort, patient_labels
from embedprior.errors import BadInput
from embedprior.runs import hash_of
from embedprior.students.base import Cases, Stage
from embedprior.students.registry import MethodInfo
from embedprior.students.tables import pixels_if_all, pixels_of, tokens_of
from embedprior.study.config import CacheChoice, Design, StudyConfig, method_infos
from embedprior.study.designs import may_train, part_counts, targets_of, with_labels, with_pairs
from embedprior.tables import EXAM_REQUIRED, PAIR_REQUIRED, read_table


@dataclass(frozen=True)
class Caches:
    """Open caches of one study.

    Attributes:
        cxr: radiographs and DRRs.
        ct: CTs; None in a study without CT.
        pixels: the radiographs themselves, and the CTs where they are single slices.
        tokens: patch tokens of the radiographs.
    """

    cxr: EmbeddingCache
    ct: EmbeddingCache | None = None
    pixels: EmbeddingCache | None = None
    tokens: EmbeddingCache | None = None

    def named(self) -> dict[str, EmbeddingCache]:
        """Return the caches there are."""
        every = {"cxr": self.cxr, "ct": self.ct, "pixels": self.pixels, "tokens": self.tokens}
        return {name: cache for name, cache in every.items() if cache is not None}

    def hashes(self, exams: pd.DataFrame) -> dict[str, str]:
        """Return, by cache, hashes of the embeddings of the exams it holds, and of what is known of their encoder."""
        found = {}
        for name, cache in self.named().items():
            held = set(cache.ids)
            found[f"{name} cache"] = cache.path.name
            found[f"{name} embeddings"] = cache.digest([i for i in exams["exam_id"] if i in held])
            found[f"{name} encoder"] = hash_of(read_manifest(cache.path).get("spec", {}))
        return found

    def without_data(self) -> Caches:
        """Return the same caches with nothing of them in memory: small enough to send to another process."""
        return Caches(**{name: replace(cache) for name, cache in self.named().items()})

    def require_ct(self) -> EmbeddingCache:
        """Return the CT cache.

        Raises:
            BadInput: there is none.
        """
        if self.ct is None:
            raise BadInput("this study names no CT cache. Next: caches: {ct: FOLDER} in its configuration.")
        return self.ct

    def pixels_of(self, exam_ids: list[str]) -> UInt8[np.ndarray, "cases height width"] | None:
        """Return the square pictures of some exams, or None without a pixel cache."""
        return None if self.pixels is None else pixels_of(self.pixels, exam_ids)

    def tokens_of(self, exam_ids: list[str]) -> Float[np.ndarray, "cases tokens dim"] | None:
        """Return the patch tokens of some exams, shorter sequences padded with NaN, or None without a token cache."""
        return None if self.tokens is None else tokens_of(self.tokens, exam_ids)


def open_caches(choice: CacheChoice, data: Path, like: Caches | None = None) -> Caches:
    """Open the caches a study names.

    Args:
        choice: their places.
        data: what these are relative to.
        like: caches whose encoders these must be of.

    Raises:
        BadInput: one does not exist or is damaged, or is of another encoder (the field that differs is named).
    """
    places = {"cxr": choice.cxr, "ct": choice.ct, "pixels": choice.pixels, "tokens": choice.tokens}
    keys = {name: cache.key for name, cache in like.named().items()} if like else {}
    return Caches(**{n: open_verified(data / path, keys.get(n)) for n, path in places.items() if path is not None})


def cohort_of_caches(data: Path, caches: Caches, config: StudyConfig) -> Cohort:
    """Return the exams of the study's views whose embeddings exist; the exam table may lack ``path``.

    Raises:
        BadInput: a table is missing or breaks a rule of its format, or no exam has an embedding.
    """
    source = data / "exams.csv"
    exams = read_table(source, [c for c in EXAM_REQUIRED if c != "path"])
    if "path" not in exams.columns:
        exams = exams.assign(path="")
    file = data / "pairs.csv"
    pairs = read_table(file, PAIR_REQUIRED) if file.is_file() else pd.DataFrame(columns=list(PAIR_REQUIRED))
    flow = (flow_step("rows of exams.csv", exams, 0),)
    cohort = Cohort(data, exams, pairs, flow).checked(str(source))
    embedded = set(caches.cxr.ids) | set(caches.ct.ids if caches.ct else ())
    absent = cohort.exams.loc[~cohort.exams["exam_id"].isin(embedded), "exam_id"]
    if len(absent) == len(exams):
        raise BadInput(
            f"{source}: none of its {len(exams)} exams has an embedding, e.g. {absent.iloc[0]}; the X-ray cache holds "
            f"{', '.join(caches.cxr.ids[:2])}, … Next: check that both use the same exam ids."
        )
    cohort = cohort.drop(list(absent), "embedding exists", "no embedding in the caches") if len(absent) else cohort
    return of_views(cohort, config.views, config.complete, headers=False)


def patients_seen(caches: Caches) -> dict[str, frozenset[str]]:
    """Return, for each cache whose encoder was trained by this package, the patients its training saw."""
    return {
        f"{name} encoder": seen for name, cache in caches.named().items() if (seen := cache.patients_seen) is not None
    }


@dataclass(frozen=True)
class External:
    """The cases of one external cohort. Nothing of it trains, chooses, scales or balances anything.

    Attributes:
        name: of its folder.
        cohort: its exams; its groups bear its name, so that they are never taken for groups of the study's cohort.
        caches: its embeddings, of the same encoders.
        targets: the X-rays to score, with ``site`` = ``name``.
        paired: whether they come with CT, which only methods that need CT at inference are given.
    """

    name: str
    cohort: Cohort
    caches: Caches
    targets: pd.DataFrame
    paired: bool

    def without_data(self) -> External:
        """Return the same with nothing of the caches in memory."""
        return replace(self, caches=self.caches.without_data())


def open_external(config: StudyConfig, design: Design, data: Path, caches: Caches) -> External:
    """Return the external cohort that a design names.

    CT is read only where a method of the design needs it at inference; else every labelled X-ray is scored.

    Args:
        config: whose ``caches`` name the same places in the other folder.
        design: with ``data``.
        data: folder of the study's own cohort.
        caches: of the study's own cohort.

    Raises:
        BadInput: no such folder, a table or cache that can't be read, embeddings of another encoder (the field that
            differs is named), no label of that name, or no X-ray to score.
    """
    assert design.data is not None
    assert config.caches is not None
    folder, infos = data / design.data, method_infos(config)
    if not (folder / "exams.csv").is_file():
        raise BadInput(
            f"design '{design.name}': no external cohort at {folder} (exams.csv is missing). Next: 'data' is a folder "
            "like that of --data, and relative to it."
        )
    needing = [m for m in design.methods if infos[m].needs_ct]
    choice = config.caches if needing else config.caches.model_copy(update={"ct": None})
    name = folder.resolve().name
    try:
        own = open_caches(choice, folder, caches)
        cohort = cohort_of_caches(folder, own, config)
        cohort = replace(cohort, exams=cohort.exams.assign(group_id=name + "/" + cohort.exams["group_id"]))
        cases = design if needing else design.model_copy(update={"cases": "cxr"})
        labels = cohort.label_table() if config.labels else cohort.labels(config.label)
        targets = targets_of(cohort, labels, cases).assign(site=name)
    except BadInput as error:
        because = f" ({needing[0]} needs CT at inference)" if needing else ""
        raise BadInput(f"external cohort '{name}'{because}: {error}") from error
    return External(name, cohort, own, targets, bool(needing))


def external_folds(external: External, cohort: Cohort, targets: pd.DataFrame, design: Design) -> list[Fold]:
    """Return the one fold of a design: the study's own cohort trains, the external one is held out.

    Raises:
        BadInput: a patient or an exam is in both cohorts; the ids are named.
    """
    both = sorted(set(cohort.exams["exam_id"]) & set(external.cohort.exams["exam_id"]))
    if both:
        raise BadInput(
            f"external cohort '{external.name}': {len(both)} exam ids are the study's own too: {', '.join(both[:5])}. "
            "Next: rename them in one of the two folders (exams, pairs and caches)."
        )
    everyone = external.cohort.exams
    shared = sorted(set(cohort.exams["patient_id"]) & set(everyone["patient_id"]))
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise BadInput(
            f"external cohort '{external.name}': {len(shared)} patients are in the study's own cohort too: "
            f"{', '.join(shared[:5])}{more}. Next: take them out of one of the two, or rename them if they are others."
        )
    return [held_out_cohort(targets, external.targets, design.name)]


@dataclass(frozen=True)
class StudyInputs:
    """What the fits of one variant of a study read.

    Attributes:
        config: its settings.
        cohort: exams whose embedding exists.
        targets: by design (see ``designs.targets_of``), likewise.
        folds: by design, resample and fold.
        caches: open caches.
        artifacts: folder of all artifacts.
        infos: what is known of each method (see ``config.method_infos``).
        teacher_stream: name of the random stream of the CT head's fit; empty = the seed of the fit itself.
        externals: by design, the external cohort that it is scored on.
    """

    config: StudyConfig
    cohort: Cohort
    targets: dict[str, pd.DataFrame]
    folds: dict[tuple[str, int, int], Fold]
    caches: Caches
    artifacts: Path
    infos: dict[str, MethodInfo]
    teacher_stream: str = "teacher"
    externals: Mapping[str, External] = field(default_factory=dict)

    def without_data(self) -> StudyInputs:
        """Return the same with no embedding in memory: small enough to send to another process."""
        return replace(
            self, caches=self.caches.without_data(), externals={k: e.without_data() for k, e in self.externals.items()}
        )

    def design(self, name: str) -> Design:
        """Return a design by its name."""
        return next(d for d in self.config.designs if d.name == name)


@dataclass(frozen=True)
class TeacherData:
    """Labelled CTs of one fold.

    Attributes:
        train, train_label: embeddings and labels of the CTs that train the head.
        val, val_label: of the CTs that choose its step.
        patients: who they are of, by part.
    """

    train: Float[np.ndarray, "cts dim"]
    train_label: Float[np.ndarray, " cts"]
    val: Float[np.ndarray, "others dim"]
    val_label: Float[np.ndarray, " others"]
    patients: dict[str, list[str]]


@dataclass(frozen=True)
class FoldData:
    """Everything that the fits of one fold read and score.

    Attributes:
        stages: pretraining pairs (where there are any), then the X-rays of the design.
        paired_stages: the same for methods that use CT: pairs only.
        scored: ``val`` (where validation patients exist) and ``test``, with CT.
        teacher: None in a design where no method needs a CT head.
        counts: support of the fold, for the report.
    """

    stages: tuple[Stage, ...]
    paired_stages: tuple[Stage, ...]
    scored: dict[str, Cases]
    teacher: TeacherData | None
    counts: dict[str, int]

    def stages_for(self, info: MethodInfo) -> tuple[Stage, ...]:
        """Return what a method may learn from."""
        return self.paired_stages if info.uses_ct else self.stages


def fold_data(inputs: StudyInputs, design: Design, one: Fold, read: dict[str, Cases] | None = None) -> FoldData:
    """Return the cases of one fold.

    Args:
        inputs: of a variant.
        design: one of its designs.
        one: a fold of it.
        read: cases of the same fold for other labels, by part: their embeddings are shared, not read once more. What
            is read here is added.
    """
    targets, config = inputs.targets[design.name], inputs.config
    paired, read = design.cases == "paired", {} if read is None else read
    parts = {p: targets[targets["patient_id"].isin(one.patients(p))] for p in get_args(Part)}
    outside = inputs.externals.get(design.name)
    caches, test_paired = (outside.caches, outside.paired) if outside else (inputs.caches, paired)
    cases = {
        "train": _read_once(read, "train", parts["train"], inputs.caches, paired),
        "val": _read_once(read, "val", parts["val"], inputs.caches, paired),
        "test": _read_once(read, "test", parts["test"], caches, test_paired),
    }
    share = config.label_share(design)
    with_target = set(targets["patient_id"])
    known = _patients_with_labels(inputs, one, with_target, config.label_fraction)
    known_cxr = _patients_with_labels(inputs, one, with_target, share)
    train, val = (_only_labels(cases[part], known_cxr, known) for part in ("train", "val"))
    target = Stage(train, val)
    pretraining = _pretraining(inputs, design, one, known, read) if paired else ()
    kept_pairs = target
    if paired and config.pair_fraction < 1:
        pairs = with_pairs(set(train.patient_ids), config.pair_fraction, config.seed)
        kept_pairs = Stage(train.take([i for i, p in enumerate(train.patient_ids) if p in pairs]), val)
    teacher = None
    if paired and any(inputs.infos[m].uses_ct for m in design.methods):
        teacher = _teacher_data(inputs, design, one, known)
    # A threshold is chosen on scored validation cases: a label that is not known may not choose it either.
    # Of several labels everyone is scored and unknown ones leave afterwards, so that labels share what is computed.
    may_choose = val if config.labels else cases["val"].take(np.flatnonzero(val.known))
    scored = {part: found for part, found in (("val", may_choose), ("test", cases["test"])) if len(found)}
    counts = part_counts(parts)
    if min(config.label_fraction, share) < 1:
        counts |= {"train_images_labelled": int(train.known.sum())}
    if config.pair_fraction < 1:
        counts |= {"train_pairs": len(kept_pairs.train)}
    if pretraining:
        counts |= {"pretraining_pairs": len(pretraining[0].train)}
    if teacher is not None:
        counts |= {
            "teacher_ct_pos": int((teacher.train_label == 1).sum()),
            "teacher_ct_neg": int((teacher.train_label == 0).sum()),
            "teacher_patients": len(teacher.patients["train"]),
        }
    return FoldData((*pretraining, target), (*pretraining, kept_pairs), scored, teacher, counts)


def cases_of(targets: pd.DataFrame, caches: Caches, paired: bool, source: str = "cxr") -> Cases:
    """Return targets with their embeddings; CT is None in a design without CT."""
    exam_ids = list(targets["exam_id"])
    return Cases(
        exam_ids=exam_ids,
        patient_ids=list(targets["patient_id"]),
        label=targets["label"].to_numpy(dtype=float, copy=True),
        cxr=caches.cxr.take(exam_ids),
        ct=caches.require_ct().take(list(targets["ct_exam_id"])) if paired else None,
        ct_label=targets["ct_label"].to_numpy(dtype=float, copy=True),
        source=source,
        pixels=caches.pixels_of(exam_ids),
        ct_pixels=pixels_if_all(caches.pixels, list(targets["ct_exam_id"])) if paired and caches.pixels else None,
        tokens=caches.tokens_of(exam_ids),
    )


def _read_once(
    read: dict[str, Cases], part: str, targets: pd.DataFrame, caches: Caches, paired: bool, source: str = "cxr"
) -> Cases:
    """Return targets with their embeddings; those that were read for another label are not read again."""
    if part not in read:
        read[part] = cases_of(targets, caches, paired, source)
    label, ct_label = (targets[name].to_numpy(dtype=float, copy=True) for name in ("label", "ct_label"))
    return replace(read[part], label=label, ct_label=ct_label)


def _pretraining(
    inputs: StudyInputs, design: Design, one: Fold, known: set[str] | None, read: dict[str, Cases]
) -> tuple[Stage, ...]:
    """DRR–CT pairs of everyone outside the held-out groups; those of the validation groups choose."""
    exams = inputs.cohort.exams.set_index("exam_id")
    pairs = inputs.cohort.pairs
    pairs = pairs[(exams.loc[pairs["cxr_exam_id"], "modality"] == "DRR").to_numpy()]
    if pairs.empty:
        return ()
    y = inputs.cohort.labels(inputs.config.label)
    frame = pd.DataFrame(
        {
            "exam_id": pairs["cxr_exam_id"], "patient_id": pairs["patient_id"], "ct_exam_id": pairs["ct_exam_id"],
            "label": y.loc[pairs["cxr_exam_id"]].to_numpy(), "ct_label": y.loc[pairs["ct_exam_id"]].to_numpy(),
        }
    )  # fmt: skip
    group = exams.loc[pairs["cxr_exam_id"], "group_id"]
    in_val = group.isin(one.groups("val")).to_numpy()
    in_train = may_train(design, one, group)
    caches = replace(inputs.caches, pixels=None, tokens=None)
    train, val = (
        _only_labels(_read_once(read, f"DRR {part}", frame[rows], caches, True, "drr"), known, known)
        for part, rows in (("train", in_train), ("val", in_val))
    )
    return (Stage(train, val),) if len(train) else ()


def _teacher_data(inputs: StudyInputs, design: Design, one: Fold, known: set[str] | None) -> TeacherData:
    """Labelled CTs of every patient outside the held-out (and validation) groups, CT-only patients included."""
    ct = inputs.cohort.of("CT")
    y = inputs.cohort.labels(inputs.config.label).loc[ct["exam_id"]].to_numpy(copy=True)
    usable = ~np.isnan(y)
    if known is not None:
        usable &= ct["patient_id"].isin(known).to_numpy()
    in_val = ct["group_id"].isin(one.groups("val")).to_numpy() & usable
    in_train = may_train(design, one, ct["group_id"]) & usable
    cache = inputs.caches.require_ct()
    return TeacherData(
        cache.take(list(ct.loc[in_train, "exam_id"])), y[in_train],
        cache.take(list(ct.loc[in_val, "exam_id"])), y[in_val],
        {
            "train": sorted(set(ct.loc[in_train, "patient_id"])),
            "val": sorted(set(ct.loc[in_val, "patient_id"])),
        },
    )  # fmt: skip


def _patients_with_labels(inputs: StudyInputs, one: Fold, with_target: set[str], share: float) -> set[str] | None:
    """A share of patients whose labels are known in this fold; None = everyone's.

    The share is taken of those who choose, of those who train with an X-ray, and of all others (CT only, DRR), each
    for itself: else the few X-rays with a label might all be of one class.
    """
    config, exams = inputs.config, inputs.cohort.exams
    if share == 1:
        return None
    held, val = one.groups("test"), one.groups("val")
    highest = patient_labels(exams, inputs.cohort.labels(config.label))
    group_of = dict(zip(exams["patient_id"], exams["group_id"], strict=True))
    known: set[str] = set()
    for part in (
        {p: v for p, v in highest.items() if group_of[p] in val},
        {p: v for p, v in highest.items() if group_of[p] not in held | val and p in with_target},
        {p: v for p, v in highest.items() if group_of[p] not in held | val and p not in with_target},
    ):
        known |= with_labels(part, share, config.seed)
    return known


def _only_labels(cases: Cases, known_cxr: set[str] | None, known_ct: set[str] | None) -> Cases:
    """Hide the labels of the X-ray (or DRR) and of the CT of all other patients."""

    def kept(labels: Float[np.ndarray, " cases"], known: set[str] | None) -> Float[np.ndarray, " cases"]:
        hidden = np.array([known is not None and p not in known for p in cases.patient_ids], dtype=bool)
        return np.where(hidden, np.nan, labels)

    return replace(cases, label=kept(cases.label, known_cxr), ct_label=kept(cases.ct_label, known_ct))
