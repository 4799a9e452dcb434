"""What an audit of an exam found: stable codes that tables, tests and other programs can rely on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from embedprior.errors import choose
from embedprior.imaging.files import UnreadableExam

Severity = Literal["note", "warning", "error"]

CODES: dict[str, tuple[Severity, str]] = {
    "unreadable": ("error", "the file is damaged, or not what its name says"),
    # volumes: files and series
    "several-series": ("error", "more than one CT series, and no rule that names one"),
    "other-series": ("note", "other series in the folder were left out by the rule"),
    "other-files": ("note", "files that are no DICOM images were left out"),
    "not-ct": ("error", "the header names another modality than CT"),
    "unreadable-slice": ("error", "a slice's header or pixels can't be decoded"),
    "mixed-patients": ("error", "slices of one series name different patients"),
    "mixed-frames": ("error", "slices of one series differ in size, spacing, orientation or pixel format"),
    # volumes: geometry
    "missing-position": ("error", "slices without ImagePositionPatient or ImageOrientationPatient"),
    "duplicate-slice": ("error", "two different slices at one position"),
    "repeated-slice": ("note", "the same slice twice, pixels and all; the second was dropped"),
    "missing-slice": ("error", "a gap of a whole number of slices"),
    "uneven-spacing": ("error", "distances between slices vary"),
    "gantry-tilt": ("error", "slices are sheared, and can't be straightened"),
    "straightened": ("note", "slices of a tilted gantry were moved to their places"),
    "spacing-implausible": ("error", "voxel spacing that no chest CT has"),
    "oblique": ("note", "axes turned against the patient's; resampling straightens them"),
    "reoriented": ("note", "stored in another orientation than LPS"),
    "default-axes": ("note", "the header leaves the axes unsaid; the format's default was taken"),
    "no-geometry": ("error", "the file says nothing about spacing or position"),
    "two-geometries": ("error", "the file gives two orientations that disagree"),
    "skewed-axes": ("error", "the axes are not perpendicular, or not of length 1"),
    "too-few-slices": ("error", "too few slices for a volume"),
    # volumes: values
    "no-rescale": ("note", "no rescale in the header; stored values were taken as they are"),
    "compressed": ("note", "pixels were stored compressed"),
    "lossy": ("warning", "pixels were compressed with loss"),
    "padding": ("note", "padding outside the field of view was set to air"),
    "below-air": ("note", "values below air were set to air"),
    "fractional-hu": ("note", "values were rounded to whole HU"),
    "hu-range": ("error", "values are not Hounsfield units"),
    "hu-offset": ("warning", "air is not near -1000 HU"),
    "window-clipped": ("note", "values end at one number, as after clipping to a window"),
    "hu-clipped": ("note", "values above the int16 range were clipped"),
    # volumes: lungs
    "no-lungs": ("warning", "no pair of lungs was found"),
    "apex-cut": ("warning", "the lungs reach the top of the volume"),
    "base-cut": ("warning", "the lungs reach the bottom of the volume"),
    "lungs-touch-end": ("note", "a small part of the lungs reaches an end of the scan"),
    "short-field": ("note", "the scan covers little in z"),
    # radiographs
    "view-unknown": ("note", "neither header nor table names the view"),
    "view-differs": ("warning", "header and table name different views"),
    "inverted": ("warning", "air looks bright: probably an inverted image"),
    "lateral": ("warning", "looks like a lateral view"),
    "collimated": ("warning", "wide uniform borders"),
    "not-chest-like": ("warning", "does not look like a chest radiograph"),
    "dark": ("warning", "values use a small part of the range: more bits declared than used, or one very bright spot"),
    "stretched": ("note", "values use fewer bits than the file stores, and were stretched"),
    "turned": ("note", "rows or columns were turned as the header asks, so that the head is up and the left right"),
    "resampled": ("note", "pixels that are not square were resampled"),
    "unusual-window": ("warning", "a display window that shows little of the values; the full range was used"),
    "no-voi": ("note", "no display window in the header; the full range was used"),
    "several-frames": ("error", "more than one frame, or colour"),
    "not-radiograph": ("error", "the header names another modality than radiography"),
}
"""Code → (severity, what it means). Codes are never renamed; new ones may be added."""


@dataclass(frozen=True)
class Finding:
    """One thing an audit found.

    Attributes:
        code: one of ``CODES``.
        message: what was seen, with its numbers; never free text of a header.
    """

    code: str
    message: str

    def __post_init__(self) -> None:
        choose("finding code", self.code, CODES)

    @property
    def severity(self) -> Severity:
        """``note`` (recorded), ``warning`` (the exam needs attention) or ``error`` (it can't be used)."""
        return CODES[self.code][0]

    def __str__(self) -> str:
        return f"{self.severity} {self.code}: {self.message}"


class UnusableExam(UnreadableExam):
    """An exam was read, but its audit found an error. ``findings`` holds everything that was found."""

    def __init__(self, name: str, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        errors = [f"{f.code}: {f.message}" for f in findings if f.severity == "error"]
        super().__init__(f"{name}: {'; '.join(errors)}")


_collected: ContextVar[list[Finding] | None] = ContextVar("findings", default=None)


@contextmanager
def collect_findings() -> Iterator[list[Finding]]:
    """Collect what the readers of radiographs find while an encoder reads an exam: they return the picture alone.

    Example:
        >>> with collect_findings() as found:
        ...     report_findings([Finding("lateral", "unlike halves")])
        >>> [finding.code for finding in found]
        ['lateral']
    """
    found: list[Finding] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def report_findings(findings: Iterable[Finding]) -> None:
    """Hand findings to the ``collect_findings`` around the caller; without one they are dropped."""
    found = _collected.get()
    if found is not None:
        found += findings


def worst(findings: Iterable[Finding]) -> Severity | None:
    """Return the gravest severity among the findings, or None when there are none."""
    order: tuple[Severity, ...] = ("note", "warning", "error")
    return max((f.severity for f in findings), key=order.index, default=None)


def lungs_complete(findings: Iterable[Finding]) -> bool:
    """Return whether the audit found both lungs from apex to base (the exam table's column ``complete``)."""
    return not {f.code for f in findings} & {"no-lungs", "apex-cut", "base-cut"}
