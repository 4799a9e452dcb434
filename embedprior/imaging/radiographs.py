"""Chest radiographs from DICOM, PNG and JPEG: bone bright, values in [0, 1], the view known or said to be unknown."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageOps
from pydantic import Field

from embedprior.config import Config
from embedprior.errors import BadInput, nearest
from embedprior.imaging.dicom_header import DicomFiles, known_modality, parse_header, quiet_pydicom, read_dataset
from embedprior.imaging.dicom_pixels import LOSSY, modality_values, syntax_name
from embedprior.imaging.files import DICOM_SUFFIXES, UnreadableExam, is_dicom, printable, read_array, split_path
from embedprior.imaging.findings import Finding, UnusableExam, report_findings, worst
from embedprior.imaging.radiograph_audit import audit_radiograph
from embedprior.imaging.voi import DARK, apply_voi, read_table, read_voi, usable_voi

Geometry = Literal["letterbox", "crop"]
PICTURES = (".png", ".jpg", ".jpeg")
EXIF_ORIENTATION = 0x0112
MAX_PIXELS = 150_000_000
"""Of a file that is decoded; the largest detectors give about 30 million."""
SQUARE = 0.01
AXES = {"L": "x", "R": "x", "A": "y", "P": "y", "H": "z", "F": "z"}
RADIOGRAPHY = ("CR", "DX", "RF", "XA", "OT", "DR", "RG", "")
VIEWS = {
    "PA": "PA", "POSTEROANTERIOR": "PA", "POSTERO-ANTERIOR": "PA",
    "AP": "AP", "AP SUPINE": "AP", "AP ERECT": "AP", "AP PORTABLE": "AP", "ANTEROPOSTERIOR": "AP",
    "ANTERO-POSTERIOR": "AP",
    "L": "LATERAL", "LL": "LATERAL", "RL": "LATERAL", "LAT": "LATERAL", "LATERAL": "LATERAL", "LLAT": "LATERAL",
    "RLAT": "LATERAL", "LEFT LATERAL": "LATERAL", "RIGHT LATERAL": "LATERAL",
}  # fmt: skip
"""Spellings of ViewPosition (DICOM PS3.3 C.8.1.1 and C.8.11.5) and of public tables → ``PA``, ``AP``, ``LATERAL``."""

VIEW_CODES = {
    "R-10214": "PA", "R-40888": "PA", "272479007": "PA", "R-10206": "AP", "399348003": "AP", "R-10236": "LATERAL",
    "399173006": "LATERAL", "R-10232": "LATERAL", "399198007": "LATERAL", "R-102CD": "LATERAL", "399067008": "LATERAL",
}  # fmt: skip
"""Codes of ViewCodeSequence, SNOMED-RT and SNOMED CT (DICOM PS3.16 CID 4010)."""


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
        path: ``.png``, ``.jpg``, ``.jpeg``, or DICOM under any name.
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
    radiograph, findings = _read(path)
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


def read_image(root: Path | str, path: str) -> Float[np.ndarray, "height width"]:
    """Return a radiograph, or one row of an image array, as grey values in [0, 1]: what encoders are given.

    A file is read and audited as by ``read_radiograph``: an exam with an error is refused, and what else was found goes
    to ``collect_findings``. Colour is reduced to luminance (ITU-R 601). 16-bit files keep their depth.

    Raises:
        UnreadableExam: not an image, or damaged.
        UnusableExam: read, but with a finding of severity ``error``.
    """
    root = Path(root)
    file, row = split_path(path)
    if row is not None or file.endswith(".npy"):
        pixels = read_array(root, path)
        return (pixels / np.iinfo(pixels.dtype).max).astype(np.float32)
    radiograph, findings = _read(root / file)
    # a picture of one grey is for the encoder to refuse: a mask or a blank may be what it reads
    if float(np.ptp(radiograph.grey)) > 0:
        findings += audit_radiograph(radiograph.grey, radiograph.view)
    report_findings(findings)
    return radiograph.grey


def _read(path: Path) -> tuple[Radiograph, list[Finding]]:
    radiograph, findings = _read_dicom(path) if _holds_dicom(path) else _read_picture(path)
    if radiograph.grey.ndim != 2:
        raise UnreadableExam(f"{printable(path.name)}: expected one 2D picture, got shape {radiograph.grey.shape}")
    return radiograph, findings


def _holds_dicom(path: Path) -> bool:
    if path.suffix.lower() in PICTURES:
        return False
    try:
        return path.suffix.lower() in DICOM_SUFFIXES or is_dicom(path)
    except OSError:
        return False


def _read_picture(path: Path) -> tuple[Radiograph, list[Finding]]:
    """A PNG or JPEG, turned as its EXIF orientation says."""
    findings: list[Finding] = []
    try:
        with warnings.catch_warnings():
            # Pillow's warning about large pictures names the folder
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _refuse_huge(path.name, *image.size)
                image.load()
                findings += _audit_colour(image)
                if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
                    findings.append(Finding("turned", "by the EXIF orientation of the picture"))
                upright = ImageOps.exif_transpose(image)
                deep = upright.mode.startswith("I")
                stored = np.asarray(upright if deep else upright.convert("L"))
    except UnreadableExam:
        raise
    except Image.DecompressionBombError:
        raise UnreadableExam(
            f"{printable(path.name)}: more than {MAX_PIXELS:,} pixels, far above any detector"
        ) from None
    # Pillow raises its own kinds and, from damaged chunks, IndexError, struct.error and more; its texts name the folder
    except Exception as error:
        kind = "no such file" if isinstance(error, FileNotFoundError) else type(error).__name__
        raise UnreadableExam(f"{printable(path.name)}: not a picture, or damaged ({kind})") from None
    white = 255
    if deep:
        white, more = _white_of(stored)
        findings += more
    return Radiograph(stored.astype(np.float32) / np.float32(white)), findings


def _refuse_huge(name: str, columns: int, rows: int) -> None:
    """Refuse by its header, before a pixel is decoded, a picture that no detector gives and that would fill memory."""
    if rows * columns > MAX_PIXELS:
        raise UnreadableExam(f"{printable(name)}: {rows} × {columns} pixels; at most {MAX_PIXELS:,} are read")


def _white_of(stored: np.ndarray[Any, Any]) -> tuple[int, list[Finding]]:
    """The value that a 16-bit picture shows as white: 65535, or less where it holds values of fewer bits."""
    top = int(stored.max())
    bits = next((b for b in (8, 10, 12) if 0 < top < 2**b), 16)
    if bits < 16:
        return 2**bits - 1, [Finding("stretched", f"values up to {top} in 16 bits: read as {bits} bits")]
    bright = float(np.percentile(stored, 99)) / 65535
    return 65535, [Finding("dark", f"99 % of the pixels are below {bright:.0%} of white")] if bright < DARK else []


def normal_view(text: object) -> str:
    """Return ``"PA"``, ``"AP"`` or ``"LATERAL"`` for any known spelling, else an empty string."""
    return VIEWS.get(" ".join(str(text).upper().replace("_", " ").split()), "")


def parse_views(text: str | None) -> frozenset[str]:
    """Return the views of a list such as ``"PA,AP"``; none for no list.

    Raises:
        BadInput: a word that is no view.

    Example:
        >>> sorted(parse_views("pa, AP"))
        ['AP', 'PA']
    """
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    for word in words:
        if not normal_view(word):
            allowed = ("PA", "AP", "LATERAL")
            raise BadInput(f"unknown view '{word}'. Allowed: {', '.join(allowed)}.{nearest(word.upper(), allowed)}")
    return frozenset(normal_view(word) for word in words)


def stated_view(path: Path, view: object = "") -> str:
    """Return the view of a radiograph as a table or, where the table is silent, its DICOM header names it, else ``""``.

    Args:
        path: of the file; its pixels are not read.
        view: of the table.
    """
    if (named := normal_view(view)) or not _holds_dicom(path):
        return named
    try:
        with path.open("rb") as handle, quiet_pydicom():
            return _view(read_dataset(handle, pixels=False, tags=("ViewPosition", "ViewCodeSequence")))
    # as in dicom_header: whatever a damaged header leads to; what reads the exam reports it
    except Exception:
        return ""


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
    name = printable(path.name)
    try:
        with path.open("rb") as handle, quiet_pydicom():
            data = read_dataset(handle, pixels=False)
            header = parse_header(data, path.name)
            voi = read_voi(data)
            modality_table = read_table(data.get("ModalityLUTSequence"), data)
            flipped = header.photometric == "MONOCHROME1" or str(data.get("PresentationLUTShape", "")) == "INVERSE"
            view, orientation, aspect = _view(data), _orientation(data), _aspect(data)
    except UnreadableExam as error:
        raise UnreadableExam(f"{name}: {error}") from None
    # as in dicom_header: whatever a damaged header leads to, its text may be a name
    except Exception as error:
        raise UnreadableExam(f"{name}: header can't be decoded as DICOM ({type(error).__name__})") from None
    findings = []
    if header.modality not in RADIOGRAPHY:
        findings.append(Finding("not-radiograph", f"the modality is {known_modality(header)}"))
    if header.samples != 1:
        findings.append(Finding("several-frames", f"a colour picture ({header.samples} values a pixel), expected grey"))
    elif header.frames != 1:
        findings.append(Finding("several-frames", f"{header.frames} frames, expected one"))
    if worst(findings) == "error":
        raise UnusableExam(name, findings)
    _refuse_huge(path.name, header.columns, header.rows)
    with DicomFiles(path) as files:
        if modality_table is None:
            values = modality_values(files, header)
        else:
            values = modality_values(files, replace(header, slope=None, intercept=None))
            values = modality_table.looked_up(values).astype(np.float32)
    if header.transfer_syntax in LOSSY:
        findings.append(Finding("lossy", f"stored as {syntax_name(header)}"))
    ignored = None
    if header.padding is not None and modality_table is None:
        slope, intercept = header.slope or 1.0, header.intercept or 0.0
        ends = sorted(p * slope + intercept for p in header.padding)
        ignored = (values >= ends[0]) & (values <= ends[1])
    voi, more = usable_voi(voi, values, ignored)
    findings += more
    grey = apply_voi(values, voi, ignored)
    if flipped:
        grey = 1 - grey
        if ignored is not None:
            grey[ignored] = 0.0
    upright = _turned(grey, orientation)
    if upright is not grey:
        findings.append(Finding("turned", f"stored with rows to {orientation[0]} and columns to {orientation[1]}"))
        aspect = 1 / aspect if orientation[0] in "HF" else aspect
    if abs(aspect - 1) > SQUARE:
        findings.append(Finding("resampled", f"pixels {aspect:.3g} times as high as wide"))
        upright = _squared(upright, aspect)
    return Radiograph(upright, view, header.patient_id), findings


def _view(data: Any) -> str:
    """The view by ViewPosition, else by the code of ViewCodeSequence, in which DX files give it."""
    codes = [str(item.get("CodeValue", "")) for item in data.get("ViewCodeSequence") or []]
    return normal_view(data.get("ViewPosition", "")) or next((VIEW_CODES[c] for c in codes if c in VIEW_CODES), "")


def _orientation(data: Any) -> tuple[str, str]:
    """Where the rows and the columns of the picture run to: the first letters of PatientOrientation, L and F unsaid."""
    stated = data.get("PatientOrientation") or ("", "")
    letters = [str(v)[:1].upper() for v in ([stated] if isinstance(stated, str) else stated)]
    if len(letters) != 2 or not set(letters) <= set("LRAPHF") or len({AXES[v] for v in letters}) != 2:
        return "L", "F"
    return letters[0], letters[1]


def _turned(grey: Float[np.ndarray, "height width"], orientation: tuple[str, str]) -> Float[np.ndarray, "height width"]:
    """Turn to head up and, in a frontal view, the patient's left on the right; to the front or back as it was."""
    row, column = orientation
    if row in "HF":
        grey, row, column = rearrange(grey, "rows columns -> columns rows"), column, row
    if column == "H":
        grey = grey[::-1]
    if row == "R":
        grey = grey[:, ::-1]
    return grey


def _aspect(data: Any) -> float:
    """Height over width of a pixel, 1 where nothing says."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        stated = data.get(name)
        if stated is not None and not isinstance(stated, str) and len(stated) == 2:
            high, wide = (float(v) for v in stated)
            if 0.05 < high / wide < 20:
                return high / wide
    return 1.0


def _squared(grey: Float[np.ndarray, "height width"], aspect: float) -> Float[np.ndarray, "height width"]:
    """Resample to square pixels of the coarser of the two sides."""
    rows, columns = grey.shape
    size = (max(1, round(columns / aspect)), rows) if aspect > 1 else (columns, max(1, round(rows * aspect)))
    picture = Image.fromarray(np.ascontiguousarray(grey, dtype=np.float32))
    return np.asarray(np.clip(np.asarray(picture.resize(size, Image.Resampling.BILINEAR)), 0.0, 1.0))


def _audit_colour(image: Image.Image) -> list[Finding]:
    if image.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
        return []
    small = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    colour = float((small.max(axis=2) - small.min(axis=2)).mean())
    return [Finding("not-chest-like", f"a colour picture (mean saturation {colour:.2f})")] if colour > 0.1 else []
