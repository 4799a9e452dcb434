"""One CT series of a DICOM folder or zip → a volume, every header audited.

The order and spacing of slices come from ImagePositionPatient alone: file names and instance numbers may be wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from embedprior.errors import BadInput, nearest
from embedprior.imaging.audit import audit_grid
from embedprior.imaging.dicom_header import DicomFiles, Header, OtherImage, known_modality, read_headers
from embedprior.imaging.dicom_pixels import LOSSY, NATIVE, pixel_bytes, stack_hu, syntax_name
from embedprior.imaging.files import UnreadableExam, printable
from embedprior.imaging.findings import Finding, UnusableExam, worst
from embedprior.imaging.volume import MAX_VOXELS, Volume, correct_tilt

MIN_SLICES = 8
TILT_DEG, MAX_TILT_DEG, SIDEWAYS_DEG = 0.5, 35.0, 0.5
"""A gantry tilts about the patient's left-right axis, by 30° at most: slices then shift along their columns only."""
EVEN_MM, EVEN_SHARE = 0.1, 0.05
"""A slice may lie 0.1 mm or 5 % of the step off the even grid: headers round positions to 0.1 mm, and rounding does not
add up along the series, while a real change of step does."""
SAME_MM = 0.01


@dataclass(frozen=True)
class Stack:
    """Slices in order, with the grid they lie on.

    Attributes:
        headers: lowest position along the slice normal first.
        spacing_mm: (x, y, z).
        origin_mm: LPS centre of the first voxel.
        direction: 3 × 3, columns are index x, y, z.
        shear_mm: how much further along its columns (index y) each slice starts than the one before: a tilted gantry.
    """

    headers: tuple[Header, ...]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: Float[np.ndarray, "3 3"]
    shear_mm: float = 0.0


def audit_frames(headers: Sequence[Header]) -> list[Finding]:
    """Return findings about slices without geometry, or of more than one size, spacing or orientation."""
    findings = []
    lost = sum(h.position is None or h.orientation is None or h.spacing_yx is None for h in headers)
    if lost:
        findings.append(
            Finding(
                "missing-position",
                f"{lost} of {len(headers)} slices lack ImagePositionPatient, ImageOrientationPatient or PixelSpacing",
            )
        )
    flat = sum(n for o, n in Counter(h.orientation for h in headers).items() if o is not None and not _spans_plane(o))
    if flat:
        message = f"ImageOrientationPatient of {flat} of {len(headers)} slices spans no plane"
        findings.append(Finding("skewed-axes", message))
    patients = len({h.patient_id for h in headers})
    if patients > 1:
        message = f"{patients} different PatientID in one series. Next: sort the files by patient, and export again"
        findings.append(Finding("mixed-patients", message))
    if len(headers) < MIN_SLICES:
        findings.append(Finding("too-few-slices", f"{len(headers)} slices; a volume needs {MIN_SLICES}"))
    for what, values in (
        ("sizes", [(h.rows, h.columns) for h in headers]),
        ("pixel formats", [(h.bits_allocated, h.signed, h.samples) for h in headers]),
        ("pixel spacings", [_rounded(h.spacing_yx, 4) for h in headers]),
        ("orientations", [_rounded(h.orientation, 3) for h in headers]),
    ):
        counts = Counter(v for v in values if v is not None)
        if len(counts) > 1:
            parts = ", ".join(f"{number} x {_text(value)}" for value, number in counts.most_common(4))
            findings.append(Finding("mixed-frames", f"{len(counts)} different {what} in one series: {parts}"))
    return findings


def _spans_plane(orientation: tuple[float, ...]) -> bool:
    """Whether the two directions are neither 0 nor one line (more is checked of the grid they make)."""
    rows, columns = np.array(orientation, dtype=np.float64).reshape(2, 3)
    return bool(np.linalg.norm(np.cross(rows, columns)) > 0.1)


def order(headers: Sequence[Header]) -> tuple[list[Header], Float[np.ndarray, "n 3"], Float[np.ndarray, "3 3"]]:
    """Return the slices sorted along the slice normal, their positions in mm, and the direction matrix.

    Every header must have a position and an orientation (``audit_frames`` found none without).
    """
    cosines = np.array(headers[0].orientation, dtype=np.float64).reshape(2, 3)
    x, y = cosines / np.linalg.norm(cosines, axis=1, keepdims=True)
    normal = np.cross(x, y)
    positions = np.array([h.position for h in headers], dtype=np.float64)
    sequence = np.argsort(positions @ normal, kind="stable")
    direction = np.stack([x, y, normal / np.linalg.norm(normal)], axis=1)
    return [headers[i] for i in sequence], positions[sequence], direction


def same_place(positions: Float[np.ndarray, "n 3"], normal: Float[np.ndarray, " 3"]) -> list[tuple[int, int]]:
    """Return neighbours (i, i + 1) of the sorted slices that lie less than 0.01 mm apart."""
    gaps = np.diff(positions @ normal)
    return [(int(i), int(i) + 1) for i in np.flatnonzero(gaps < SAME_MM)]


def audit_spacing(positions: Float[np.ndarray, "n 3"], direction: Float[np.ndarray, "3 3"]) -> list[Finding]:
    """Return findings about gaps, uneven steps and gantry tilt of sorted slices, no two at one place."""
    if len(positions) < 2:
        return []
    normal = direction[:, 2]
    tilt = _tilt(positions, direction)
    findings = []
    if tilt.degrees > TILT_DEG and tilt.of_gantry:
        moved = f"slices moved by up to {abs(tilt.rows_mm):.0f} mm along their columns"
        findings.append(Finding("straightened", f"a gantry tilt of {tilt.degrees:.1f}°: {moved}"))
    elif tilt.degrees > TILT_DEG:
        findings.append(
            Finding(
                "gantry-tilt",
                f"sheared by {tilt.degrees:.1f}°, which no gantry does: slices shift by {abs(tilt.columns_mm):.0f} mm "
                f"along rows and {abs(tilt.rows_mm):.0f} mm along columns over {tilt.along_mm:.0f} mm. "
                "Next: fetch the series again, or convert it with dcm2niix",
            )
        )
    gaps = np.diff(positions @ normal)
    step = float(np.median(gaps))
    holes = np.flatnonzero(gaps > 1.5 * step)
    if holes.size:
        return [*findings, _holes(gaps, step, holes)]
    even = positions[0] + np.linspace(0, 1, len(positions))[:, None] * (positions[-1] - positions[0])
    off = np.linalg.norm(positions - even, axis=1)
    if off.max() > max(EVEN_MM, EVEN_SHARE * step):
        findings.append(
            Finding(
                "uneven-spacing",
                f"steps from {gaps.min():g} to {gaps.max():g} mm; slice {int(off.argmax()) + 1} of {len(positions)} "
                f"(in order of position) lies {off.max():.2f} mm off an even grid",
            )
        )
    return findings


@dataclass(frozen=True)
class _Tilt:
    """How far the last slice lies from the first: along the normal, the rows' and the columns' direction, mm."""

    along_mm: float
    columns_mm: float
    rows_mm: float

    @property
    def degrees(self) -> float:
        return float(np.degrees(np.arctan2(np.hypot(self.columns_mm, self.rows_mm), self.along_mm)))

    @property
    def of_gantry(self) -> bool:
        sideways = float(np.degrees(np.arctan2(abs(self.columns_mm), self.along_mm)))
        return sideways <= SIDEWAYS_DEG and self.degrees <= MAX_TILT_DEG


def _tilt(positions: Float[np.ndarray, "n 3"], direction: Float[np.ndarray, "3 3"]) -> _Tilt:
    columns, rows, along = (float(v) for v in (positions[-1] - positions[0]) @ direction)
    return _Tilt(along, columns, rows)


def stack(headers: Sequence[Header], positions: Float[np.ndarray, "n 3"], direction: Any) -> Stack:
    """Return sorted, evenly spaced slices as a stack."""
    between_rows, between_columns = headers[0].spacing_yx or (1.0, 1.0)
    tilt = _tilt(positions, np.asarray(direction))
    tilted = tilt.degrees > TILT_DEG
    length = tilt.along_mm if tilted else float(np.linalg.norm(positions[-1] - positions[0]))
    x, y, z = (float(v) for v in positions[0])
    spacing = (between_columns, between_rows, length / (len(positions) - 1))
    shear = tilt.rows_mm / (len(positions) - 1) if tilted else 0.0
    return Stack(tuple(headers), spacing, (x, y, z), direction, shear)


def _holes(gaps: Float[np.ndarray, " n"], step: float, holes: np.ndarray[Any, Any]) -> Finding:
    multiples = gaps[holes] / step
    whole = bool((np.abs(multiples - np.rint(multiples)) < 0.1).all())
    where = [f"{gaps[i]:g} mm between slices {i + 1} and {i + 2}" for i in holes[:4]]
    more = f" and {holes.size - 4} more gaps" if holes.size > 4 else ""
    seen = f"steps of {step:g} mm, but {', '.join(where)}{more} (in order of position)"
    if whole:
        missing = int(np.rint(multiples - 1).sum())
        return Finding("missing-slice", f"{missing} missing: {seen}. Next: fetch the series again")
    return Finding("uneven-spacing", seen)


def _rounded(values: tuple[float, ...] | None, digits: int) -> tuple[float, ...] | None:
    return None if values is None else tuple(round(v, digits) + 0.0 for v in values)


def _text(value: object) -> str:
    return "/".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) if isinstance(value, tuple) else ""


RULES = ("only", "most-slices")
PLANES = ("sagittal", "coronal", "axial")
INSIDE = (".nii.gz", ".nii", ".nrrd", ".mha", ".zip", ".npz")
UNPACK = "Next: decompress the enhanced CT (gdcmconv --raw), or convert it with dcm2niix"


def read_series(path: Path | str, rule: str) -> tuple[Volume, list[Finding]]:
    """Return the volume of one series as it is stored, and findings about files, series, geometry and padding.

    Args:
        path: folder, zip, or one file. Of a folder with a CT series of its own the subfolders are other exams; of any
            other folder they are read too.
        rule: ``"only"``, ``"most-slices"``, or the short id of a series; several, separated by commas, are tried in
            order.

    Raises:
        UnreadableExam: no DICOM images, or no zip.
        UnusableExam: a finding of severity ``error``.
        BadInput: no such rule or series.
    """
    path = Path(path)
    name = printable(path.name)
    with series_files(path) as files:
        headers, findings = _headers(files, name)
        chosen, more = choose_series(headers, rule, name)
        findings += more
        findings += audit_frames(chosen)
        findings += _audit_coding(chosen)
        if worst(findings) == "error":
            raise UnusableExam(name, findings)
        ordered, positions, direction = order(chosen)
        try:
            twice, more = _duplicates(files, ordered, same_place(positions, direction[:, 2]))
            findings += more
            kept = [i for i in range(len(ordered)) if i not in twice]
            ordered, positions = [ordered[i] for i in kept], positions[kept]
            if not any(f.code == "duplicate-slice" for f in findings):
                findings += audit_spacing(positions, direction)
            if len(ordered) < MIN_SLICES and not any(f.code == "too-few-slices" for f in findings):
                findings.append(Finding("too-few-slices", f"{len(ordered)} different slices"))
            slices = stack(ordered, positions, direction)
            findings += audit_grid(slices.spacing_mm, slices.direction)
            if worst(findings) == "error":
                raise UnusableExam(name, findings)
            hu, more = stack_hu(files, slices.headers)
        except UnusableExam:
            raise
        except UnreadableExam as error:
            raise UnusableExam(name, [*findings, Finding("unreadable-slice", str(error))]) from None
    first = slices.headers[0]
    ids = {"patient_id": first.patient_id, "series_id": first.series_uid}
    volume = Volume(hu, slices.spacing_mm, slices.origin_mm, slices.direction, **ids)
    return correct_tilt(volume, slices.shear_mm), findings + more


def series_files(path: Path) -> DicomFiles:
    """Return the files that ``read_series`` reads: those of a folder itself if a CT series is among them, else all.

    Raises:
        UnreadableExam: not a zip, or a damaged one.
    """
    if path.is_dir():
        own = DicomFiles(path, nested=False)
        headers: list[Header] = []
        for file in own.names:
            try:
                headers += read_headers(own, file)
            except UnreadableExam:
                return own  # what is wrong with it is said when the series is read
        if candidates(headers):
            return own
    return DicomFiles(path)


def candidates(headers: Sequence[Header]) -> dict[str, list[Header]]:
    """Return the series that may be volumes, by short id: CT, of at least eight slices besides localizers."""
    series: dict[str, list[Header]] = {}
    for header in headers:
        series.setdefault(header.series_uid, []).append(header)
    return {
        members[0].series: members
        for members in series.values()
        if members[0].modality == "CT" and sum(not h.localizer for h in members) >= MIN_SLICES
    }


def series_rule(series: str, exams: int) -> str:
    """Return the rule for a number of exams: a series' id is that of one folder, the others are read without it.

    Example:
        >>> series_rule("3f2a9c11", exams=40)
        '3f2a9c11,only'
    """
    return series if exams < 2 or series in RULES else f"{series},only"


def choose_series(headers: Sequence[Header], rule: str, name: str) -> tuple[list[Header], list[Finding]]:
    """Return the slices of one series by the rule.

    Localizers, other modalities than CT, and series of fewer than eight slices are no candidates. With ``"only"`` a
    second candidate is an error, which lists the candidates' short ids.

    Raises:
        UnusableExam: no candidate, or several and no rule that decides.
        BadInput: the rule is neither a rule nor the short id of a candidate.
    """
    found = candidates(headers)
    series = {header.series_uid for header in headers}
    if not found:
        raise UnusableExam(name, [_no_candidate(headers)])
    by_size = sorted(found, key=lambda key: (-len(found[key]), key))

    def listing() -> str:
        return ", ".join(f"{key} ({_describe(found[key])})" for key in by_size[:6])

    asked = [part.strip() for part in rule.split(",")]
    chosen = next((part for part in asked if part in RULES or part in found), None)
    if chosen is None:
        raise BadInput(
            f"unknown series '{rule}' of {name}. Allowed: {', '.join(RULES)}, or one of {listing()}."
            f"{nearest(rule, [*RULES, *found])}"
        )
    if chosen == "only" and len(found) > 1:
        message = f"{len(found)} CT series: {listing()}. Next: name one of them, or the rule 'most-slices'"
        raise UnusableExam(name, [Finding("several-series", message)])
    key = by_size[0] if chosen in RULES else chosen
    findings = []
    if len(series) > 1:
        left = len(headers) - len(found[key])
        findings.append(Finding("other-series", f"{len(series) - 1} other series ({left} images); read: {key}"))
    return [h for h in found[key] if not h.localizer], findings


def _no_candidate(headers: Sequence[Header]) -> Finding:
    count = Counter(h.series_uid for h in headers)
    largest = max(count, key=lambda uid: count[uid])
    members = [h for h in headers if h.series_uid == largest]
    if members[0].modality != "CT":
        return Finding("not-ct", f"the modality is {known_modality(members[0])}")
    if members[0].frames > 1:
        return Finding(
            "too-few-slices",
            f"{members[0].frames} frames in one file that does not say where each lies. Next: export the series again",
        )
    return Finding("too-few-slices", f"{len(members)} slices; a volume needs {MIN_SLICES}")


def _describe(members: Sequence[Header]) -> str:
    """What tells two reconstructions apart: slices, pixels, step, kernel and plane."""
    first = members[0]
    parts = [f"{len(members)} slices {first.columns} x {first.rows}"]
    if first.spacing_yx:
        parts.append(f"{first.spacing_yx[1]:.3g} mm pixels")
    placed = [h for h in members if h.position and h.orientation and _spans_plane(h.orientation) and not h.localizer]
    if len(placed) > 1:
        _, positions, direction = order(placed)
        gaps = np.diff(positions @ direction[:, 2])
        parts.append(f"every {float(np.median(gaps)):.3g} mm")
        parts.append(PLANES[int(np.abs(direction[:, 2]).argmax())])
    return ", ".join([*parts, f"kernel {first.kernel}"] if first.kernel else parts)


def _headers(files: DicomFiles, name: str) -> tuple[list[Header], list[Finding]]:
    headers: list[Header] = []
    broken, others, foreign = [], 0, 0
    for file in files.names:
        try:
            found = read_headers(files, file)
        except OtherImage:
            foreign += 1
            continue
        except UnreadableExam as error:
            broken.append(str(error))
            continue
        headers += found
        others += not found
    if broken and headers:
        message = f"{len(broken)} of {len(files.names)} files, first: {broken[0]}"
        raise UnusableExam(name, [Finding("unreadable-slice", message)])
    if not headers:
        inside = next((s for s in INSIDE if any(f.lower().endswith(s) for f in files.names)), "")
        unpack = f". Next: unpack it, and give the {inside} file" if inside else ". Allowed: the files of one CT series"
        first = f" ({broken[0]})" if broken else ""
        raise UnreadableExam(f"{name}: no DICOM images among {len(files.names)} files{first}{unpack}")
    findings = [Finding("other-files", f"{others} files are no DICOM images")] if others else []
    if foreign:
        findings.append(Finding("other-files", f"{foreign} damaged files of other modalities than CT"))
    return headers, findings


def _audit_coding(headers: Sequence[Header]) -> list[Finding]:
    first, findings = headers[0], []
    if any(h.samples != 1 or (h.frames != 1 and h.frame is None) for h in headers):
        findings.append(Finding("mixed-frames", "colour, or frames without a place: expected one grey slice each"))
    if float(first.rows) * first.columns * len(headers) > MAX_VOXELS:
        findings.append(Finding("mixed-frames", f"{len(headers)} slices of {first.columns} x {first.rows}: too many"))
    bare = sum(h.slope is None and h.intercept is None for h in headers)
    if bare:
        findings.append(Finding("no-rescale", f"{bare} of {len(headers)} slices: the stored values were taken as HU"))
    packed = [h for h in headers if h.transfer_syntax not in NATIVE]
    if packed:
        if any(h.frame is not None for h in packed):
            findings.append(Finding("unreadable-slice", f"frames compressed as {syntax_name(packed[0])}. {UNPACK}"))
        findings.append(Finding("compressed", f"{len(packed)} of {len(headers)} slices: {syntax_name(packed[0])}"))
    if any(h.transfer_syntax in LOSSY for h in packed):
        findings.append(Finding("lossy", "the transfer syntax may lose detail"))
    return findings


def _duplicates(
    files: DicomFiles, ordered: Sequence[Header], pairs: Sequence[tuple[int, int]]
) -> tuple[set[int], list[Finding]]:
    """Second slices to drop: equal pixels are the same slice copied; different pixels are an error."""
    equal: set[int] = set()
    different = []
    for first, second in pairs:
        if pixel_bytes(files, ordered[first]) == pixel_bytes(files, ordered[second]):
            equal.add(second)
        else:
            different.append(second)
    findings = []
    if equal:
        findings.append(Finding("repeated-slice", f"{len(equal)} of {len(ordered)} slices"))
    if different:
        where = ", ".join(str(i) for i in different[:4])
        message = f"{len(different)} of {len(ordered)} slices share a position with a different one (number {where} …)"
        findings.append(Finding("duplicate-slice", f"{message}. Next: split the phases or reconstructions"))
    return equal, findings
