"""One CT series of a DICOM folder or zip → a volume, every header audited."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from embedprior.errors import BadInput, nearest
from embedprior.imaging import dicom_geometry as geometry
from embedprior.imaging.dicom_header import DicomFiles, Header, known_modality, read_headers
from embedprior.imaging.dicom_pixels import LOSSY, NATIVE, padding_hu, pixel_bytes, slice_hu, syntax_name
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.findings import Finding, UnusableExam, worst
from embedprior.imaging.hounsfield import below_air, floor_at_air
from embedprior.imaging.reading import MAX_VOXELS
from embedprior.imaging.tilt import straightened
from embedprior.imaging.volume import AIR_HU, Volume

RULES = ("only", "most-slices")
SURE_PADDING = (-900, 3072)
"""A padding value below or above these HU can be no tissue; between them only what touches the border is padding."""

UNPACK = "Next: decompress the enhanced CT (gdcmconv --raw), or convert it with dcm2niix"


def read_series(path: Path, rule: str) -> tuple[Volume, list[Finding]]:
    """Return the volume of one series as it is stored, and findings about files, series, geometry and padding.

    Args:
        path: folder (with subfolders), zip, or one file.
        rule: ``"only"``, ``"most-slices"``, or the short id of a series.

    Raises:
        UnreadableExam: no DICOM images, or pixels that can't be decoded.
        UnusableExam: a finding of severity ``error``.
        BadInput: no such rule or series.
    """
    with DicomFiles(path) as files:
        headers, findings = _headers(files, path.name)
        chosen, more = choose_series(headers, rule, path.name)
        findings += more
        findings += geometry.audit_frames(chosen)
        findings += _audit_coding(chosen)
        if worst(findings) == "error":
            raise UnusableExam(path.name, findings)
        ordered, positions, direction = geometry.order(chosen)
        twice, more = _duplicates(files, ordered, geometry.same_place(positions, direction[:, 2]))
        findings += more
        kept = [i for i in range(len(ordered)) if i not in twice]
        ordered, positions = [ordered[i] for i in kept], positions[kept]
        findings += geometry.audit_spacing(positions, direction)
        if len(ordered) < geometry.FEWEST_SLICES and not any(f.code == "too-few-slices" for f in findings):
            findings.append(Finding("too-few-slices", f"{len(ordered)} different slices"))
        if worst(findings) == "error":
            raise UnusableExam(path.name, findings)
        slices = geometry.stack(ordered, positions, direction)
        hu, more = _pixels(files, slices.headers)
    first = slices.headers[0]
    ids = {"patient_id": first.patient_id, "series_id": first.series_uid}
    volume = Volume(hu, slices.spacing_mm, slices.origin_mm, slices.direction, **ids)
    return straightened(volume, slices.shear_mm), findings + more


def choose_series(headers: Sequence[Header], rule: str, name: str) -> tuple[list[Header], list[Finding]]:
    """Return the slices of one series by the rule.

    Localizers, other modalities than CT, and series of fewer than eight slices are no candidates. With ``"only"`` a
    second candidate is an error, which lists the candidates' short ids.

    Raises:
        UnusableExam: no candidate, or several and no rule that decides.
        BadInput: the rule is neither a rule nor the short id of a candidate.
    """
    series: dict[str, list[Header]] = {}
    for header in headers:
        series.setdefault(header.series_uid, []).append(header)
    candidates = {
        members[0].series: members
        for members in series.values()
        if members[0].modality == "CT" and sum(not h.localizer for h in members) >= geometry.FEWEST_SLICES
    }
    if not candidates:
        raise UnusableExam(name, [_no_candidate(series)])
    by_size = sorted(candidates, key=lambda key: (-len(candidates[key]), key))
    listing = ", ".join(f"{key} ({_describe(candidates[key])})" for key in by_size[:6])
    if rule not in RULES and rule not in candidates:
        raise BadInput(
            f"unknown series '{rule}' of {name}. Allowed: {', '.join(RULES)}, or one of {listing}."
            f"{nearest(rule, [*RULES, *candidates])}"
        )
    if rule == "only" and len(candidates) > 1:
        message = f"{len(candidates)} CT series: {listing}. Next: name one of them, or the rule 'most-slices'"
        raise UnusableExam(name, [Finding("several-series", message)])
    key = by_size[0] if rule in RULES else rule
    findings = []
    if len(series) > 1:
        left = sum(map(len, series.values())) - len(candidates[key])
        findings.append(Finding("other-series", f"{len(series) - 1} other series ({left} images); read: {key}"))
    return [h for h in candidates[key] if not h.localizer], findings


def _no_candidate(series: dict[str, list[Header]]) -> Finding:
    members = max(series.values(), key=len)
    if members[0].modality != "CT":
        return Finding("not-ct", f"the modality is {known_modality(members[0])}")
    if members[0].frames > 1:
        return Finding(
            "too-few-slices",
            f"{members[0].frames} frames in one file that does not say where each lies. Next: export the series again",
        )
    return Finding("too-few-slices", f"{len(members)} slices; a volume needs {geometry.FEWEST_SLICES}")


def _describe(members: Sequence[Header]) -> str:
    first = members[0]
    spacing = f", {first.spacing_yx[1]:.3g} mm pixels" if first.spacing_yx else ""
    return f"{len(members)} slices {first.columns} x {first.rows}{spacing}"


def _headers(files: DicomFiles, name: str) -> tuple[list[Header], list[Finding]]:
    headers: list[Header] = []
    broken, others = [], 0
    for file in files.names:
        try:
            found = read_headers(files, file)
        except UnreadableExam as error:
            broken.append(str(error))
            continue
        headers += found
        others += not found
    if broken:
        message = f"{len(broken)} of {len(files.names)} files, first: {broken[0]}"
        raise UnusableExam(name, [Finding("unreadable-slice", message)])
    if not headers:
        raise UnreadableExam(f"{name}: no DICOM images among {len(files.names)} files")
    return headers, [Finding("other-files", f"{others} files are no DICOM images")] if others else []


def _audit_coding(headers: Sequence[Header]) -> list[Finding]:
    first, findings = headers[0], []
    if any(h.samples != 1 or (h.frames != 1 and h.frame is None) for h in headers):
        findings.append(Finding("mixed-frames", "colour, or frames without a place: expected one grey slice each"))
    if float(first.rows) * first.columns * len(headers) > MAX_VOXELS:
        findings.append(Finding("mixed-frames", f"{len(headers)} slices of {first.columns} x {first.rows}: too many"))
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


def _pixels(files: DicomFiles, headers: Sequence[Header]) -> tuple[Int16[np.ndarray, "z y x"], list[Finding]]:
    """HU of all slices, one slice in memory besides the volume."""
    hu = np.empty((len(headers), headers[0].rows, headers[0].columns), np.int16)
    padded = below = 0
    lowest = AIR_HU
    for number, header in enumerate(headers):
        plane = hu[number]
        plane[:] = slice_hu(files, header)
        padded += fill_padding(plane, padding_hu(header))
        # slice by slice, while it is in the processor's cache
        low, count = floor_at_air(plane)
        lowest, below = min(lowest, low), below + count
    findings = [Finding("padding", f"{padded / hu.size:.1%} of the voxels")] if padded else []
    return hu, findings + below_air(lowest, below, hu.size)


def fill_padding(plane: Int16[np.ndarray, "rows columns"], declared: tuple[int, int] | None) -> int:
    """Set declared padding to air in place, and return how many pixels changed.

    A padding value that tissue can have too counts only where it touches the border of the slice.
    """
    if declared is None or declared[0] == declared[1] == AIR_HU:
        return 0
    mask = (plane >= declared[0]) & (plane <= declared[1])
    if not mask.any():
        return 0
    if declared[1] > SURE_PADDING[0] and declared[0] < SURE_PADDING[1]:
        from scipy import ndimage

        labels, _ = ndimage.label(mask)
        border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        mask = np.isin(labels, border[border > 0])
    plane[mask] = AIR_HU
    return int(mask.sum())
