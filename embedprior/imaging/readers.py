"""Which exams lie under a path, and a CT volume of any supported format read and audited."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from embedprior.errors import BadInput
from embedprior.imaging.audit import audit_geometry, audit_hu
from embedprior.imaging.dicom_elements import plain_dataset
from embedprior.imaging.dicom_header import HEAD_BYTES, MODALITIES, quiet_pydicom, read_dataset
from embedprior.imaging.dicom_series import MIN_SLICES, read_series
from embedprior.imaging.files import (
    DICOM_SUFFIXES,
    UnreadableExam,
    content_id,
    files_below,
    is_dicom,
    printable,
    split_path,
)
from embedprior.imaging.findings import Finding, UnusableExam, worst
from embedprior.imaging.image_files import IMAGE_SUFFIXES, read_image_file
from embedprior.imaging.lungs import audit_lungs
from embedprior.imaging.radiographs import PICTURES, RADIOGRAPHY, normal_view
from embedprior.imaging.volume import Volume
from embedprior.tables import EXAM_REQUIRED, LABEL_PREFIX, check_exams, read_table

VOLUMES = (*IMAGE_SUFFIXES, ".npz", ".zip")
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""SOP classes (DICOM PS3.4 B.5) of Enhanced and Legacy Converted Enhanced CT: a whole series in one file."""
RADIOGRAPHS = (
    "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2",
)  # fmt: skip
"""SOP classes of CR, DX, angiography and fluoroscopy."""
PEEKED = (
    "Modality", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "ImageType", "NumberOfFrames",
    "Rows", "Columns",
)  # fmt: skip
Kind = Literal["volume", "radiograph"]
COPIED = ("group_id", "site", "sex", "age", "source", "offset_days", "acquired_at")
"""Columns of the exam table that a DRR shares with its CT, beside the labels."""


def is_volume(root: Path | str, path: str) -> bool:
    """Return whether an exam is a CT volume by its name, or a folder; a row of an array file is a picture."""
    named = Path(path).name.lower().endswith(VOLUMES) or (Path(root) / path).is_dir()
    return named and split_path(path)[1] is None


def read_volume(path: Path | str, series: str = "only") -> tuple[Volume, list[Finding]]:
    """Read a CT volume and audit it.

    Args:
        path: a DICOM folder or zip, NIfTI (``.nii``, ``.nii.gz``), NRRD, MetaImage (``.mha``, ``.mhd``), or ``.npz``
            with ``hu`` (z, y, x) and ``spacing_mm`` (x, y, z), optionally ``origin_mm`` and ``direction``.
        series: which series of a folder that holds several: ``"only"`` (one, or an error), ``"most-slices"``, or the
            short id that the error message lists.

    Returns:
        The volume as stored (see ``Volume``; ``preprocess.prepare`` reorients and resamples), and what the audit found.

    Raises:
        UnreadableExam: damaged, or not a volume.
        UnusableExam: read, but with a finding of severity ``error``; it carries all findings.
        BadInput: an unknown rule or series.

    Source: DICOM PS3.3 C.7.6.2 (image plane) and C.8.2.1 (Hounsfield units).

    Example:
        >>> import embedprior
        >>> import numpy as np
        >>> hu = np.full((40, 64, 64), -1000, np.int16)
        >>> hu[:, 8:56, 4:60] = 40                               # soft tissue in air, and no lungs in it
        >>> np.savez("scan.npz", hu=hu, spacing_mm=(5.0, 5.0, 7.0))
        >>> volume, findings = embedprior.read_volume("scan.npz")
        >>> volume.shape, volume.spacing_mm, volume.orientation
        ((40, 64, 64), (5.0, 5.0, 7.0), 'LPS')
        >>> "no-lungs" in [finding.code for finding in findings]
        True
    """
    path = Path(path)
    name = path.name.lower()
    if not path.exists():
        raise UnreadableExam(f"{printable(path.name)}: no such file or folder")
    if path.is_file() and name.endswith((".npz", *IMAGE_SUFFIXES)):
        volume, findings = read_image_file(path)
    elif path.is_dir() or name.endswith((".zip", *DICOM_SUFFIXES)) or is_dicom(path):
        volume, findings = read_series(path, series)
    else:
        raise UnreadableExam(
            f"{printable(path.name)}: no volume by its name or content. Allowed: a DICOM folder or .zip, .npz, "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    findings += audit_geometry(volume)
    findings += audit_hu(volume.hu)
    if worst(findings) == "error":
        raise UnusableExam(printable(path.name), findings)
    findings += audit_lungs(volume)
    return volume, findings


@dataclass(frozen=True)
class ExamSource:
    """One exam's source.

    Attributes:
        name: relative to the path that was searched, as it can be printed.
        path: file, or folder of one DICOM series (or of several).
        kind: how it is to be read.
        view: of a radiograph, where a table names it.
    """

    name: str
    path: Path
    kind: Literal["volume", "radiograph"]
    view: str = ""


@dataclass(frozen=True)
class Discovery:
    """What lies under a path.

    Attributes:
        exams: by name.
        skipped: name and reason of what is DICOM and no exam of its own: localizers, dose reports, short series beside
            a CT.
        unrecognised: how many files of each ending are nothing that can be read.
    """

    exams: tuple[ExamSource, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    unrecognised: Mapping[str, int] = field(default_factory=dict)

    def notes(self, names: bool = True) -> list[str]:
        """Return a line for every skipped thing, and one for the files that were not recognised.

        Args:
            names: with the names of what was skipped; else a line for each reason.
        """
        lines = [f"{name}: {reason}" for name, reason in self.skipped]
        if not names:
            lines = [f"{count} x {reason}" for reason, count in Counter(reason for _, reason in self.skipped).items()]
        if self.unrecognised:
            kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(self.unrecognised.items()))
            lines.append(f"{sum(self.unrecognised.values())} files were not recognised: {kinds}")
        return lines


@dataclass(frozen=True)
class _Peek:
    """What decides which exam a DICOM file belongs to."""

    file: Path
    modality: str
    sop_class: str
    series_uid: str
    patient_id: str
    study: str
    localizer: bool
    frames: int
    image: bool

    @property
    def kind(self) -> Literal["slice", "volume", "radiograph", "other", "no image"]:
        if not self.image:
            return "no image"
        if self.modality == "CT" or self.sop_class in (CT_IMAGE, *ENHANCED_CT):
            return "volume" if self.sop_class in ENHANCED_CT or self.frames > 1 else "slice"
        return "radiograph" if self.modality in RADIOGRAPHY or self.sop_class in RADIOGRAPHS else "other"

    @property
    def what(self) -> str:
        """The modality, where it is a code of the standard."""
        if self.file.name.upper() == "DICOMDIR":
            return "a disc's directory"
        return self.modality if self.modality in MODALITIES else "unknown modality"


def discover(path: Path | str) -> Discovery:
    """Find the exams under a file or folder.

    Files are known by name (``.nii.gz``, ``.png`` …) or by content (DICOM under any name). In a folder the slices of CT
    are one exam; every radiograph is one. Subfolders are exams of their own; links to folders are followed once.

    Raises:
        BadInput: the path does not exist, or holds nothing that can be read.

    Example:
        >>> [exam.name for exam in discover("study/").exams]  # doctest: +SKIP
        ['ct', 'xray.dcm']
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{printable(str(path))} does not exist.")
    root = path if path.is_dir() else path.parent
    named, dicom, unknown = _sorted_out(files_below(path) if path.is_dir() else [path])
    exams, skipped = _dicom_exams(dicom, root, alone=path.is_file())
    exams += [ExamSource(_name(file, root), file, kind) for file, kind in named]
    found = Discovery(tuple(sorted(exams, key=lambda exam: exam.name)), tuple(sorted(skipped)), Counter(unknown))
    if not found.exams:
        allowed = ", ".join((*VOLUMES, *DICOM_SUFFIXES, *PICTURES))
        seen = f" It has: {'; '.join(found.notes()[:4])}." if found.notes() else ""
        raise BadInput(
            f"{printable(str(path))}: nothing to read. Allowed: DICOM files, or files named {allowed}.{seen}"
        )
    return found


def exams_of_table(table: Path) -> list[ExamSource]:
    """Return the CTs and radiographs of an exam table, with the views it names.

    Raises:
        BadInput: a broken table.
    """
    exams = check_exams(read_table(table, EXAM_REQUIRED), str(table))
    exams = exams[exams["modality"].isin(["CT", "CXR", "DRR"])]
    if exams.empty:
        raise BadInput(f"{table} has no exam of modality CT, CXR or DRR.")
    views = exams["view"] if "view" in exams.columns else [""] * len(exams)
    return [
        ExamSource(str(name), table.parent / str(path), "volume" if kind == "CT" else "radiograph", normal_view(view))
        for name, path, kind, view in zip(exams["exam_id"], exams["path"], exams["modality"], views, strict=True)
    ]


@dataclass(frozen=True)
class CtExam:
    """One CT to render.

    Attributes:
        exam_id: of the table, or made of the contents or of the path.
        patient_id: of the table, or the exam id: a header's id is never taken over.
        path: file or folder.
        columns: of the exam table, as far as its DRRs share them.
        of_table: whether a table names it, and so its patient.
        named: whether its path may be written into tables: a table gave it, or the user allows it.
    """

    exam_id: str
    patient_id: str
    path: Path
    columns: dict[str, Any] = field(default_factory=dict)
    of_table: bool = False
    named: bool = True


def named_by_content(exams: Sequence[ExamSource]) -> list[str]:
    """Return an id for each exam that holds no name of a file or folder; a copy gets a number (``…-2``)."""
    found, seen = [], Counter[str]()
    for exam in exams:
        name = content_id(exam.path, "ct" if exam.kind == "volume" else "image")
        seen[name] += 1
        found.append(f"{name}-{seen[name]}" if seen[name] > 1 else name)
    return found


def find_cts(path: Path, keep_names: bool = False) -> tuple[list[CtExam], list[str]]:
    """Find the CTs at a path: a volume file or zip, a folder of DICOM files, or a folder that holds such things.

    Args:
        path: to search.
        keep_names: exam ids are the names of files and folders. By default they come from the contents.

    Returns:
        The CTs, by name; and a line for each thing there that is none (``Discovery.notes``).

    Raises:
        BadInput: nothing there, no volume among it, or two files that would share one exam id.
    """
    where = printable(str(path))
    if not path.exists():
        raise BadInput(f"no CT at {where}. Allowed: a volume file, a DICOM folder or zip, or a folder of them.")
    found = discover(path)
    volumes = [source for source in found.exams if source.kind == "volume"]
    ids = [_name_without_ending(source) for source in volumes] if keep_names else named_by_content(volumes)
    exams = [CtExam(name, name, source.path, named=keep_names) for name, source in zip(ids, volumes, strict=True)]
    others = len(found.exams) - len(exams)
    if not exams:
        raise BadInput(f"no volume under {where}. Allowed: {', '.join(VOLUMES)}, or DICOM files of a CT.")
    _refuse_repeated(exams, where)
    return exams, [*found.notes(keep_names), *([f"{others} radiographs were left out"] if others else [])]


def cts_of_table(table: Path) -> list[CtExam]:
    """Return the CT rows of an exam table, paths resolved against its folder.

    Raises:
        BadInput: a broken table, or one without CT.
    """
    exams = check_exams(read_table(table, EXAM_REQUIRED), str(table))
    rows = exams[exams["modality"] == "CT"]
    if rows.empty:
        raise BadInput(f"{table} has no exam of modality CT.")
    kept = [c for c in rows.columns if c in COPIED or c.startswith(LABEL_PREFIX)]
    return [
        CtExam(
            str(r["exam_id"]),
            str(r["patient_id"]),
            table.parent / str(r["path"]),
            {c: r[c] for c in kept},
            of_table=True,
        )
        for r in rows.to_dict("records")
    ]


def _sorted_out(files: Sequence[Path]) -> tuple[list[tuple[Path, Kind]], list[Path], list[str]]:
    """Files that their names tell, DICOM files, and the endings of the rest."""
    named: list[tuple[Path, Kind]] = []
    dicom: list[Path] = []
    unknown: list[Path] = []
    for file in files:
        name = file.name.lower()
        if name.endswith(VOLUMES):
            named.append((file, "volume"))
        elif name.endswith(PICTURES):
            named.append((file, "radiograph"))
        elif name.endswith(DICOM_SUFFIXES) or is_dicom(file):
            dicom.append(file)
        else:
            unknown.append(file)
    headers = {file.with_suffix("") for file, _ in named if file.suffix.lower() in (".mhd", ".nhdr")}
    # the file of voxels that a header of text names
    endings = [file.suffix.lower() or "without ending" for file in unknown if not _beside(file, headers)]
    return named, dicom, endings


def _beside(file: Path, headers: set[Path]) -> bool:
    return any(file.name.startswith(header.name + ".") and file.parent == header.parent for header in headers)


def _dicom_exams(files: Sequence[Path], root: Path, alone: bool) -> tuple[list[ExamSource], list[tuple[str, str]]]:
    """Which exams DICOM files make, and which of them are none of their own."""
    peeks = [_peek(file) for file in files]
    exams: list[ExamSource] = []
    skipped: list[tuple[str, str]] = []
    of_series: dict[tuple[Path, str, str], list[_Peek]] = defaultdict(list)
    for peek in peeks:
        if peek.kind in ("slice", "other"):
            of_series[peek.file.parent, peek.patient_id, peek.series_uid].append(peek)
    whole = {key for key, slices in of_series.items() if sum(not s.localizer for s in slices) >= MIN_SLICES}
    stacks = {key[0] for key in whole if of_series[key][0].kind == "slice"}
    scattered = _scattered(of_series, whole)
    with_ct = {s.study for key in whole if key[0] in stacks for s in of_series[key]}
    with_ct |= {s.study for slices in scattered.values() for s in slices}
    with_ct |= {peek.study for peek in peeks if peek.kind == "volume"}
    exams += [ExamSource(_name(folder, root), folder, "volume") for folder in sorted(stacks | set(scattered))]
    within = {id(s) for slices in scattered.values() for s in slices}
    for (folder, _, _), slices in of_series.items():
        if folder in stacks or id(slices[0]) in within:
            continue  # read, or noted, with the stack
        if slices[0].study in with_ct:
            kind = "a localizer" if all(s.localizer for s in slices) else f"{len(slices)} images of {slices[0].what}"
            place = slices[0].file if len(slices) == 1 else folder
            skipped.append((_name(place, root), f"{kind}, beside the CT of its study"))
        elif slices[0].kind == "slice" or len(slices) >= MIN_SLICES:
            place = slices[0].file if alone else folder
            exams.append(ExamSource(_name(place, root), place, "volume"))
        else:
            exams += [ExamSource(_name(s.file, root), s.file, "radiograph") for s in slices]
    for peek in peeks:
        if peek.kind == "no image" and peek.file.parent not in stacks:
            skipped.append((_name(peek.file, root), f"no image ({peek.what})"))
        elif peek.kind == "radiograph" and peek.modality == "OT" and peek.study in with_ct:
            skipped.append((_name(peek.file, root), "a secondary image, beside the CT of its study"))
        elif peek.kind == "volume" or peek.kind == "radiograph":
            exams.append(ExamSource(_name(peek.file, root), peek.file, peek.kind))
    seen: set[Path] = set()
    return [e for e in exams if not (e.path in seen or seen.add(e.path))], skipped  # type: ignore[func-returns-value]


def _scattered(
    of_series: Mapping[tuple[Path, str, str], list[_Peek]], whole: set[tuple[Path, str, str]]
) -> dict[Path, list[_Peek]]:
    """Series whose slices lie in a folder each, by the folder above them."""
    above: dict[tuple[Path, str, str], list[_Peek]] = defaultdict(list)
    for key, slices in of_series.items():
        if key not in whole and slices[0].kind == "slice" and not slices[0].localizer:
            above[key[0].parent, key[1], key[2]] += slices
    found = {key: slices for key, slices in above.items() if len(slices) >= MIN_SLICES}
    return {key[0]: slices for key, slices in found.items()}


def _peek(file: Path) -> _Peek:
    """Read the few tags that decide; a damaged file counts as a radiograph, and is reported by what reads it."""
    try:
        with file.open("rb") as handle, quiet_pydicom():
            data = plain_dataset(handle.read(HEAD_BYTES), PEEKED)
            if data is None:
                handle.seek(0)
                data = read_dataset(handle, pixels=False, tags=PEEKED)
            return _Peek(
                file, str(data.get("Modality", "")).upper(), str(data.get("SOPClassUID", "")),
                str(data.get("SeriesInstanceUID", "")), str(data.get("PatientID", "") or ""),
                str(data.get("StudyInstanceUID", "")) or str(file.parent.parent),
                "LOCALIZER" in str(data.get("ImageType", "")).upper(), int(data.get("NumberOfFrames", 1) or 1),
                bool(data.get("Rows")) and bool(data.get("Columns")),
            )  # fmt: skip
    # as in dicom_header.read_headers: whatever a damaged value leads to
    except Exception:
        return _Peek(file, "", "", "", "", str(file), False, 1, True)


def _name(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    return printable(path.resolve().name if name == "." else name)


def _name_without_ending(source: ExamSource) -> str:
    lower = source.name.lower()
    endings = sorted((*VOLUMES, *DICOM_SUFFIXES), key=len, reverse=True)
    ending = next((s for s in endings if lower.endswith(s)), "") if source.path.is_file() else ""
    return source.name[: len(source.name) - len(ending)].replace("/", "_")


def _refuse_repeated(exams: Sequence[CtExam], where: str) -> None:
    seen: dict[str, Path] = {}
    for exam in exams:
        if exam.exam_id in seen:
            names = " and ".join(printable(path.name) for path in (seen[exam.exam_id], exam.path))
            raise BadInput(
                f"{where}: {names} would both be exam '{exam.exam_id}'. Next: rename one, or give an exam table with "
                "--cohort."
            )
        seen[exam.exam_id] = exam.path
