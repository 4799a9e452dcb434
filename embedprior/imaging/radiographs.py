"""Chest radiographs from DICOM, PNG and JPEG: bone bright, values in [0, 1], the view known or said to be unknown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from PIL import Image
from pydantic import Field

from embedprior.config import Config
from embedprior.imaging.dicom_header import DicomFiles, known_modality, parse_header, quiet_pydicom, read_dataset
from embedprior.imaging.dicom_pixels import LOSSY, modality_values, syntax_name
from embedprior.imaging.files import DICOM_SUFFIXES, UnreadableExam, read_array, split_path
from embedprior.imaging.findings import Finding, UnusableExam, worst
from embedprior.imaging.radiograph_audit import audit_radiograph

Geometry = Literal["letterbox", "crop"]
TRANSFORM_VERSION = 1
RADIOGRAPHY = ("CR", "DX", "RF", "XA", "OT", "DR", "RG", "")
VIEWS = {
    "PA": "PA", "POSTEROANTERIOR": "PA", "POSTERO-ANTERIOR": "PA",
    "AP": "AP", "AP SUPINE": "AP", "AP ERECT": "AP", "AP PORTABLE": "AP", "ANTEROPOSTERIOR": "AP",
    "ANTERO-POSTERIOR": "AP",
    "L": "LATERAL", "LL": "LATERAL", "RL": "LATERAL", "LAT": "LATERAL", "LATERAL": "LATERAL", "LLAT": "LATERAL",
    "RLAT": "LATERAL", "LEFT LATERAL": "LATERAL", "RIGHT LATERAL": "LATERAL",
}  # fmt: skip
"""Spellings of ViewPosition (DICOM PS3.3 C.8.1.1 and C.8.11.5) and of public tables → ``PA``, ``AP``, ``LATERAL``."""


@dataclass(frozen=True, eq=False)
class Radiograph:
    """A radiograph as it is displayed.

    Attributes:
        grey: values in [0, 1], bone and metal bright, rows from head to foot.
        view: ``"PA"``, ``"AP"``, ``"LATERAL"``, or empty when nothing names it.
        patient_id: of the header, or empty. For joining tables in memory: never print or write it.

    Example: see ``read_radiograph``.
    """

    grey: Float[np.ndarray, "height width"] = field(repr=False)
    view: str = ""
    patient_id: str = field(default="", repr=False)


class RadiographProfile(Config):
    """How a radiograph becomes an array.

    Attributes:
        side: rows and columns.
        geometry: ``letterbox`` keeps the whole picture and pads the short side with black; ``crop`` scales the short
            side and keeps the centre.
        mean, std: subtracted from and divided into the [0, 1] values.
    """

    side: int = Field(224, ge=1)
    geometry: Geometry = "letterbox"
    mean: float = 0.0
    std: float = Field(1.0, gt=0)


def read_radiograph(path: Path | str, view: str = "") -> tuple[Radiograph, list[Finding]]:
    """Read a radiograph and audit it.

    Args:
        path: ``.dcm``, ``.png``, ``.jpg`` or ``.jpeg``.
        view: what the cohort's table says; it wins over the header, and a difference is a finding.

    Raises:
        UnreadableExam: damaged, or not a picture.
        UnusableExam: several frames, colour, or one uniform grey.

    Source: DICOM PS3.3 C.11.2 (display windows and tables), C.7.6.3.1.2 (MONOCHROME1).

    Example:
        >>> import embedprior
        >>> import numpy as np
        >>> from PIL import Image
        >>> Image.fromarray(np.linspace(0, 255, 96 * 80).astype(np.uint8).reshape(96, 80)).save("ramp.png")
        >>> radiograph, findings = embedprior.read_radiograph("ramp.png", view="PA")
        >>> radiograph.grey.shape, float(radiograph.grey.max()), radiograph.view
        ((96, 80), 1.0, 'PA')
        >>> "not-chest-like" in [finding.code for finding in findings]       # a grey ramp is no chest
        True
    """
    path = Path(path)
    if path.suffix.lower() in DICOM_SUFFIXES:
        radiograph, findings = _read_dicom(path)
    else:
        radiograph, findings = Radiograph(read_image(path.parent, path.name)), _audit_colour(path)
    if radiograph.grey.ndim != 2:
        raise UnreadableExam(f"{path.name}: expected one 2D picture, got shape {radiograph.grey.shape}")
    if float(np.ptp(radiograph.grey)) == 0:
        raise UnreadableExam(f"{path.name}: every pixel has the same value")
    named = normal_view(view)
    if named and radiograph.view and named != radiograph.view:
        findings.append(Finding("view-differs", f"the header says {radiograph.view}, the table {named}"))
    chosen = named or radiograph.view
    if not chosen:
        findings.append(Finding("view-unknown", "neither the header nor a table names the view"))
    findings += audit_radiograph(radiograph.grey, chosen)
    return Radiograph(radiograph.grey, chosen, radiograph.patient_id), findings


def read_image(root: Path, path: str) -> Float[np.ndarray, "height width"]:
    """Return a DICOM, PNG or JPEG picture, or one row of an image array, as grey values in [0, 1].

    A DICOM radiograph is returned as it is displayed (``radiographs.read_radiograph``). Colour is reduced to luminance
    (ITU-R 601). 16-bit files keep their depth.

    Raises:
        UnreadableExam: not an image, or damaged.
    """
    file, row = split_path(path)
    if row is not None or file.endswith(".npy"):
        pixels = read_array(root, path)
        return (pixels / np.iinfo(pixels.dtype).max).astype(np.float32)
    if Path(file).suffix.lower() in DICOM_SUFFIXES:
        return read_radiograph(root / file)[0].grey
    try:
        with Image.open(root / file) as image:
            image.load()
            deep = image.mode.startswith("I")
            grey = np.asarray(image if deep else image.convert("L"), dtype=np.float32)
    # Pillow raises its own kinds and, from damaged chunks, IndexError, struct.error and more; its texts name the folder
    except Exception as error:
        kind = "no such file" if isinstance(error, FileNotFoundError) else type(error).__name__
        raise UnreadableExam(f"{Path(file).name}: not a picture, or damaged ({kind})") from None
    return grey / (65535.0 if deep else 255.0)


def normal_view(text: object) -> str:
    """Return ``"PA"``, ``"AP"`` or ``"LATERAL"`` for any known spelling, else an empty string."""
    return VIEWS.get(" ".join(str(text).upper().replace("_", " ").split()), "")


def prepare_radiograph(
    grey: Float[np.ndarray, "height width"], profile: RadiographProfile
) -> Float[np.ndarray, "side side"]:
    """Bring to side × side (bicubic, see ``to_square``) and normalise; float32."""
    square = to_square(grey, profile.side, profile.geometry, Image.Resampling.BICUBIC)
    return (square - np.float32(profile.mean)) / np.float32(profile.std)


def to_square(
    grey: Float[np.ndarray, "height width"], side: int, geometry: Geometry, resampling: Image.Resampling
) -> Float[np.ndarray, "side side"]:
    """Resize with antialiasing and bring to ``side`` × ``side``; values stay in [0, 1], float32.

    Args:
        grey: values in [0, 1].
        side: in pixels.
        geometry: see ``RadiographProfile``.
        resampling: filter of the resize.
    """
    height, width = grey.shape
    fitted = max(height, width) if geometry == "letterbox" else min(height, width)
    size = (max(1, round(width * side / fitted)), max(1, round(height * side / fitted)))
    picture = Image.fromarray(np.ascontiguousarray(grey, dtype=np.float32))
    # bicubic overshoots at edges; 8-bit pipelines clip it, so networks trained on those never saw it
    small = np.clip(np.asarray(picture.resize(size, resampling)), 0.0, 1.0)
    if geometry == "letterbox":
        canvas = np.zeros((side, side), np.float32)
        top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
        return canvas
    top, left = (small.shape[0] - side) // 2, (small.shape[1] - side) // 2
    return np.asarray(small[top : top + side, left : left + side], dtype=np.float32)


def _read_dicom(path: Path) -> tuple[Radiograph, list[Finding]]:
    if not path.is_file():
        raise UnreadableExam(f"{path.name}: no such file")
    try:
        with path.open("rb") as handle, quiet_pydicom():
            data = read_dataset(handle, pixels=False)
            header = parse_header(data, path.name)
            voi = _voi(data)
            flipped = header.photometric == "MONOCHROME1" or str(data.get("PresentationLUTShape", "")) == "INVERSE"
            view = normal_view(data.get("ViewPosition", ""))
    # as in dicom_header: whatever a damaged header leads to, its text may be a name
    except Exception as error:
        raise UnreadableExam(f"{path.name}: header can't be decoded as DICOM ({type(error).__name__})") from None
    findings = []
    if header.modality not in RADIOGRAPHY:
        findings.append(Finding("not-radiograph", f"the modality is {known_modality(header)}"))
    if header.frames != 1 or header.samples != 1:
        findings.append(Finding("several-frames", f"{header.frames} frames of {header.samples} colours, expected one"))
    if worst(findings) == "error":
        raise UnusableExam(path.name, findings)
    with DicomFiles(path) as files:
        values = modality_values(files, header)
    if header.transfer_syntax in LOSSY:
        findings.append(Finding("lossy", f"stored as {syntax_name(header)}"))
    ignored = None
    if header.padding is not None:
        slope, intercept = header.slope or 1.0, header.intercept or 0.0
        ends = sorted(p * slope + intercept for p in header.padding)
        ignored = (values >= ends[0]) & (values <= ends[1])
    grey = apply_voi(values, voi, ignored)
    if voi is None:
        findings.append(Finding("no-voi", "the range of the pixels was used"))
    if flipped:
        grey = 1 - grey
        if ignored is not None:
            grey[ignored] = 0.0
    return Radiograph(grey, view, header.patient_id), findings


@dataclass(frozen=True, eq=False)
class Voi:
    """A display transform: a window, or a table of output values from ``first`` on (DICOM PS3.3 C.11.2)."""

    centre: float = 0.0
    width: float = 1.0
    function: str = "LINEAR"
    table: np.ndarray[Any, Any] | None = None
    first: int = 0
    bits: int = 16


def apply_voi(
    values: Float[np.ndarray, "height width"], voi: Voi | None, ignored: np.ndarray[Any, Any] | None = None
) -> Float[np.ndarray, "height width"]:
    """Return display values in [0, 1] (float32) by the display transform, or over the range of the pixels.

    Formulas: DICOM PS3.3 C.11.2.1.2 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (LINEAR_EXACT), C.11.1.1 (tables).
    ``ignored`` marks padding, which is left out of that range and becomes 0.
    """
    if voi is not None and voi.table is not None:
        index = np.clip(np.rint(values).astype(np.int64) - voi.first, 0, voi.table.size - 1)
        grey = voi.table[index].astype(np.float32) / (2**voi.bits - 1)
    elif voi is not None and voi.function == "SIGMOID":
        grey = 1 / (1 + np.exp(-4 * (values - voi.centre) / voi.width))
    elif voi is not None:
        # LINEAR counts the end points as pixels, LINEAR_EXACT does not
        exact = voi.function == "LINEAR_EXACT"
        centre, width = (voi.centre, voi.width) if exact else (voi.centre - 0.5, voi.width - 1)
        grey = (values - centre) / max(width, 1e-6) + 0.5
    else:
        kept = values if ignored is None or ignored.all() else values[~ignored]
        low, high = float(kept.min()), float(kept.max())
        grey = (values - low) / max(high - low, 1e-6)
    shown = np.asarray(np.clip(grey, 0.0, 1.0), dtype=np.float32)
    if ignored is not None:
        shown[ignored] = 0.0
    return shown


def _voi(data: Any) -> Voi | None:
    tables = data.get("VOILUTSequence")
    if tables:
        entries, first, bits = (int(v) & 0xFFFF for v in tables[0].LUTDescriptor)
        raw = tables[0].LUTData
        # entries of 8 bits may lie one or two to a word
        packed = isinstance(raw, bytes) and len(raw) < 2 * (entries or 0x10000)
        table = np.frombuffer(raw, "u1" if packed else "<u2") if isinstance(raw, bytes) else np.asarray(list(raw))
        if data.get("PixelRepresentation", 0) == 1 and first > 0x7FFF:
            first -= 0x10000
        return Voi(table=table[: entries or 0x10000].astype(np.int64) & 0xFFFF, first=first, bits=min(16, max(1, bits)))
    centre, width = (data.get(name) for name in ("WindowCenter", "WindowWidth"))
    if centre in (None, "") or width in (None, ""):
        return None
    one, other = (float(v if isinstance(v, (int, float, str)) else v[0]) for v in (centre, width))
    if not np.isfinite(one) or not other > 0:
        return None
    return Voi(one, other, str(data.get("VOILUTFunction", "LINEAR")).upper())


def _audit_colour(path: Path) -> list[Finding]:
    with Image.open(path) as image:
        if image.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
            return []
        small = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    colour = float((small.max(axis=2) - small.min(axis=2)).mean())
    if colour > 0.1:
        return [Finding("not-chest-like", f"a colour picture (mean saturation {colour:.2f})")]
    return []


def radiograph_record(profile: RadiographProfile) -> dict[str, object]:
    """Return what goes into a cache key: every setting, and the version of the code that applies it."""
    return {"transform_version": TRANSFORM_VERSION, **profile.model_dump(mode="json")}
