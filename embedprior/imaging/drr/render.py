"""CTs on disk to radiographs on disk: artifacts named by the CT's contents and the settings, in one process or many."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from embedprior.config import parse_config
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.imaging.dicom_header import DicomFiles, Header, read_headers
from embedprior.imaging.dicom_pixels import slice_hu
from embedprior.imaging.dicom_series import series_files
from embedprior.imaging.drr.config import (
    DrrConfig,
    Poses,
    get_renderer,
    identity_poses,
    renderer_version,
    volume_centre,
)
from embedprior.imaging.drr.physics import attenuation, attenuation_per_mm, extend_volume, to_display_image
from embedprior.imaging.files import UnreadableExam, files_below, printable, without_names
from embedprior.imaging.findings import Finding, lungs_complete
from embedprior.imaging.image_files import IMAGE_SUFFIXES
from embedprior.imaging.image_integrity import read_nifti_header
from embedprior.imaging.lungs import MIN_ML, find_lungs
from embedprior.imaging.readers import CtExam, read_volume
from embedprior.imaging.volume import Volume, canonical
from embedprior.runs import artifact, hash_array, hash_of, one_thread, progress, read_json, seed_for, write_json
from embedprior.runs.workers import worker_pool

if TYPE_CHECKING:
    from torch import Tensor

CODE_TAG = "drr-2"
"""Raise the number whenever the same CT and settings give other pixels; a golden test notices."""
FACTS = "ct.json"
POSES_AT_ONCE = 4
Picture = Float[np.ndarray, "height width"]


@dataclass(frozen=True)
class Scanned:
    """A CT whose bytes have been hashed.

    Attributes:
        exam: the CT.
        digest: sha256 of its contents, the same for a zip and the folder it was packed from.
        same_as: exam id of an earlier CT that is the same scan; empty for the first.
        series: hash of its SeriesInstanceUID; empty where it is not one DICOM series.
    """

    exam: CtExam
    digest: str
    same_as: str = ""
    series: str = ""


@dataclass(frozen=True)
class Rendered:
    """What came of one CT.

    Attributes:
        exam_id: of the CT.
        folder: of its images; None when it failed.
        complete: whether the scan holds both lungs.
        findings: of the CT's audit.
        reused: the images were there already.
        reason: why it failed; empty when it did not.
    """

    exam_id: str
    folder: Path | None
    complete: bool = False
    findings: tuple[Finding, ...] = ()
    reused: bool = False
    reason: str = ""


def image_name(pose: int) -> str:
    """Return the file name of one pose's image, without its ending."""
    return f"pose-{pose:03d}"


def scan(exams: Iterable[CtExam]) -> tuple[list[Scanned], list[dict[str, str]]]:
    """Hash every CT and find the scan that is there twice.

    The same scan is one of equal contents, or one DICOM series again: same UID, patient, grid and middle slice. A UID
    alone proves nothing, since anonymisers write constants. Where a table names the patients, they must be the same.

    Returns:
        The CTs in their order; one record (``exam_id, stage, reason``) for each that can't be opened, or that is left
        out because an earlier one is the same scan.
    """
    first: dict[str, CtExam] = {}
    found, failures = [], []
    for exam in exams:
        try:
            names, series = identities(exam.path)
        except (UnreadableExam, OSError) as error:
            failures.append({"exam_id": exam.exam_id, "stage": "scan", "reason": reason_of(error, exam)})
            continue
        digest = names[0]
        if exam.of_table:
            names = [hashlib.sha256(f"{name} {exam.patient_id}".encode()).hexdigest() for name in names]
        same = next((first[n].exam_id for n in names if n in first), "")
        if same:
            reason = f"the same scan as {same}: rendered once"
            failures.append({"exam_id": exam.exam_id, "stage": "scan", "reason": reason})
        for name in names:
            first.setdefault(name, exam)
        found.append(Scanned(exam, digest, same, series))
    return found, failures


def shared_series(scanned: Sequence[Scanned]) -> list[list[str]]:
    """Return the exam ids of different scans that share one SeriesInstanceUID, in groups."""
    groups: dict[str, list[str]] = defaultdict(list)
    for item in scanned:
        if item.series and not item.same_as:
            groups[item.series].append(item.exam.exam_id)
    return [ids for ids in groups.values() if len(ids) > 1]


def identities(path: Path) -> tuple[list[str], str]:
    """Return what a CT is known by.

    Returns:
        The sha256 of its contents and, where it is one DICOM series, of its UID, patient, grid and middle slice; and
        the hash of that series' UID, or an empty text.

    Raises:
        UnreadableExam: not there, or a damaged zip.
    """
    if not path.exists():
        raise UnreadableExam(f"{printable(path.name)}: no such file or folder")
    if path.is_file() and path.name.lower().endswith((".npz", *IMAGE_SUFFIXES)):
        with path.open("rb") as handle:
            return [hashlib.file_digest(handle, "sha256").hexdigest()], ""
    total = hashlib.sha256()
    headers: list[Header] = []
    with series_files(path) as files:
        digests = []
        for name in files.names:
            with files.open(name) as handle:
                digests.append(hashlib.file_digest(handle, "sha256").digest())  # type: ignore[arg-type]
            headers += read_headers(files, name)
        for digest in sorted(digests):
            total.update(digest)
        # several series in one folder are told apart by the series rule, not here
        if len({header.series_uid for header in headers}) != 1 or not headers[0].series_uid:
            return [total.hexdigest()], ""
        return [total.hexdigest(), _scan_hash(files, headers)], headers[0].series


def _scan_hash(files: DicomFiles, headers: Sequence[Header]) -> str:
    """Hash of one scan, however its pixels are packed: its UID, its patient, where its slices lie, and one of them."""
    placed = sorted(headers, key=lambda h: (h.position or (), h.frame or 0))
    grid = [(h.patient_id, h.rows, h.columns, h.spacing_yx, h.orientation, h.position) for h in placed]
    middle, _ = slice_hu(files, placed[len(placed) // 2])
    return hash_of([headers[0].series_uid, grid, hash_array(middle)])


def reason_of(error: Exception, exam: CtExam) -> str:
    """Return why a CT could not be used, without the names of files and folders."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return printable(without_names(text.replace(str(exam.path), ""), exam.path))


def render_exam(item: Scanned, config: DrrConfig, root: Path) -> Rendered:
    """Render one CT, or find it rendered. A CT that can't be read is an outcome, not an exception.

    Args:
        item: the CT.
        config: the settings.
        root: folder of artifacts.

    Raises:
        EmbedpriorError: what would stop every CT (no room, a renderer that is not installed).
    """
    try:
        made = artifact("drr", {"ct": item.digest}, config, code_tag(config.renderer), _builder(item, config), root)
    except (UnreadableExam, OSError, MemoryError) as error:
        return Rendered(item.exam.exam_id, None, reason=reason_of(error, item.exam))
    except EmbedpriorError:
        raise
    except (ValueError, RuntimeError) as error:
        return Rendered(item.exam.exam_id, None, reason=f"{type(error).__name__}: {reason_of(error, item.exam)}")
    facts = read_json(made.path / FACTS)
    findings = tuple(Finding(f["code"], f["message"]) for f in facts["findings"])
    return Rendered(item.exam.exam_id, made.path, bool(facts["complete"]), findings, made.reused)


def code_tag(renderer: str) -> str:
    """Return the version of the code that makes an image: of this module, and of the renderer.

    Raises:
        BadInput: see ``config.renderer_version``.
    """
    return f"{CODE_TAG}/{renderer}-{renderer_version(renderer)}"


def _builder(item: Scanned, config: DrrConfig) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        volume, findings = read_volume(item.exam.path, config.series)
        centre = isocentre(volume, config.centre)
        poses = draw_poses(config, item.digest)
        with one_thread():
            integrals = project(volume, config, poses, centre)
            noise = [seed_for(config.seed, "noise", item.digest, k) for k in range(config.poses)]
            pixels = to_display_image(integrals, config, noise)
        for k, picture in enumerate(pixels):
            write_png16(picture, folder / f"{image_name(k)}.png")
            write_json(folder / f"{image_name(k)}.json", sidecar(item.digest, config, poses, centre, k))
        write_json(folder / FACTS, ct_record(volume, findings))

    return build


def render_drr(volume: Volume | Path | str, view: str = "PA", size: int = 224, **settings: Any) -> Picture:
    """Render a chest CT as a radiograph (DRR): line integrals of its attenuation, displayed.

    Args:
        volume: a CT, or the path of one (see ``read_volume``).
        view: ``"PA"``, ``"AP"`` or ``"LATERAL"``.
        size: pixels along each side.
        settings: others of ``DrrConfig``: ``renderer``, ``field_mm``, ``centre``, ``energy_kev``, ``seed`` (of the
            quantum noise), ``appearance`` (a mapping of ``Appearance``). Many poses of many CTs: ``embedprior drr``.

    Returns:
        Grey values in [0, 1], (size, size) float32, bone bright, head up, the patient's left on the right (PA, AP).

    Raises:
        BadInput: an unknown setting, view or renderer, or a value that is not allowed; ``read_volume`` has others.

    Source: Joseph, IEEE TMI 1982 (projection); Beer and Lambert's law; attenuation: NIST SRD 126 and ICRU Report 44.

    Example:
        >>> import embedprior
        >>> import numpy as np
        >>> hu = np.full((40, 60, 60), -1000, np.int16)
        >>> hu[5:35, 10:50, 10:50] = 40                        # a block of soft tissue in air
        >>> image = embedprior.render_drr(embedprior.Volume(hu, spacing_mm=(5, 5, 5)), size=64, centre="volume")
        >>> image.shape, bool(image[32, 32] > image[0, 0])
        ((64, 64), True)
    """
    if "poses" in settings:
        raise BadInput("render_drr renders one straight image and takes no 'poses'. Next: embedprior drr --poses N")
    config = parse_config(DrrConfig, {"view": view, "size": size, **settings}, "render_drr")
    ct = volume if isinstance(volume, Volume) else read_volume(volume, config.series)[0]
    with one_thread():
        integrals = project(ct, config, identity_poses(1), isocentre(ct, config.centre))
        return np.asarray(to_display_image(integrals, config, [seed_for(config.seed, "noise")])[0], dtype=np.float32)


def draw_poses(config: DrrConfig, digest: str) -> Poses:
    """Return the poses of one CT: the first straight, pose k drawn from a stream of its own."""
    import torch

    still = identity_poses(1)
    angles, shifts = [still.angles_deg], [still.shift_mm]
    for k in range(1, config.poses):
        draw = np.random.default_rng(seed_for(config.seed, "pose", digest, k)).uniform(-1.0, 1.0, size=(2, 1, 3))
        angles.append(torch.from_numpy(draw[0] * config.max_angle_deg))
        shifts.append(torch.from_numpy(draw[1] * config.max_shift_mm))
    return Poses(torch.cat(angles), torch.cat(shifts))


def isocentre(volume: Volume, centre: str) -> Float[np.ndarray, " 3"]:
    """Return the point (LPS mm) that the central beam goes through.

    "lungs" is the middle of the box around the lungs, where a radiographer centres; "volume", and a scan without
    lungs, the middle of the volume.
    """
    if centre == "lungs":
        lungs = find_lungs(volume)
        if lungs.ml >= MIN_ML:
            upright = canonical(volume)
            middle = []
            for axis in range(3):
                hit = np.flatnonzero(lungs.mask.any(axis=tuple(a for a in range(3) if a != axis)))
                middle.append((hit[0] + hit[-1] + 1) * lungs.factors[axis] / 2 - 0.5)
            return np.asarray((upright.affine @ np.array([*middle[::-1], 1.0]))[:3])
    return volume_centre(volume.shape, volume.affine)


def project(volume: Volume, config: DrrConfig, poses: Poses, centre: Float[np.ndarray, " 3"]) -> Tensor:
    """Return the line integrals of a CT, (poses, size, size)."""
    import torch

    render = get_renderer(config.renderer)
    volume = extend_volume(volume, config.edge_padding_mm)
    with torch.inference_mode():
        mu = attenuation(volume, config.energy_kev)
        batches = [slice(k, k + POSES_AT_ONCE) for k in range(0, len(poses), POSES_AT_ONCE)]
        parts = [
            render(mu, volume.affine, config.geometry, Poses(poses.angles_deg[b], poses.shift_mm[b]), centre)
            for b in batches
        ]
        return torch.cat(parts)


def write_png16(grey: Picture, path: Path) -> None:
    """Write grey values in [0, 1] as a 16-bit PNG."""
    Image.fromarray(np.round(grey.astype(np.float64) * 65535).astype(np.uint16)).save(path)


def sidecar(digest: str, config: DrrConfig, poses: Poses, centre: Float[np.ndarray, " 3"], k: int) -> dict[str, Any]:
    """Return everything needed to make image k again from its CT."""
    geometry = config.geometry
    return {
        "source_sha256": digest,
        "code": code_tag(config.renderer),
        "renderer": config.renderer,
        "geometry": {
            "view": geometry.view,
            "source_to_detector_mm": geometry.source_to_detector,
            "source_to_isocentre_mm": geometry.source_to_isocentre,
            "pixels": [geometry.height, geometry.width],
            "pitch_mm": geometry.pitch,
            "isocentre_lps_mm": [round(float(v), 6) for v in centre],
            "centre": config.centre,
            "edge_padding_mm": config.edge_padding_mm,
        },
        "pose": {
            "number": k,
            "angles_deg": [float(v) for v in poses.angles_deg[k]],
            "shift_mm": [float(v) for v in poses.shift_mm[k]],
        },
        "hu_to_mu": {
            "energy_kev": config.energy_kev,
            "mu_water_per_mm": attenuation_per_mm("water", config.energy_kev),
            "mu_cortical_bone_per_mm": attenuation_per_mm("bone", config.energy_kev),
            "source": "NIST SRD 126, ICRU-44",
        },
        "appearance": config.appearance,
        "seed": config.seed,
    }


def ct_record(volume: Volume, findings: list[Finding]) -> dict[str, Any]:
    """Return what is kept about the CT beside its images: its grid and its audit, no identifier."""
    return {
        "complete": lungs_complete(findings),
        "shape_zyx": list(volume.shape),
        "spacing_xyz_mm": list(volume.spacing_mm),
        "findings": [{"code": f.code, "message": f.message} for f in findings],
    }


SECONDS_PER_SAMPLE = 6e-9
"""Of the plane sweep on one core, measured with tools/bench/drr.py: a ray's reading of one plane."""
READ_SECONDS = 1.5
PROCESS_BYTES, BYTES_PER_BYTE = 900_000_000, 3.3
"""Of a worker: Python with torch, and volume (1), attenuation (2) and a slice for each byte of int16 HU; measured with
300 slices of 512 x 512."""


def render_all(
    items: Sequence[Scanned], config: DrrConfig, root: Path, workers: int = 1, desc: str = "drr"
) -> list[Rendered]:
    """Render every CT; returns what came of each, in their order.

    The images do not depend on the number of workers: each CT is rendered on one thread.

    Args:
        items: CTs, each series once.
        config: the settings.
        root: folder of artifacts.
        workers: processes; 1 = this one.
        desc: text of the progress bar.
    """
    work = partial(render_exam, config=config, root=root)
    if workers <= 1 or len(items) <= 1:
        return list(progress(map(work, items), desc, total=len(items)))
    # a forked child inherits the locks of torch's threads, and hangs on them
    with worker_pool(min(workers, len(items))) as pool:
        return list(progress(pool.map(work, items), desc, total=len(items)))


def memory_estimate(exams: Sequence[CtExam]) -> int:
    """Return the bytes that one worker needs for the largest of the CTs: the process, the volume and its attenuation.

    Args:
        exams: the CTs; their headers or sizes are looked at, no voxel is read.
    """
    return PROCESS_BYTES + round(BYTES_PER_BYTE * max((_int16_bytes(exam.path) for exam in exams), default=0))


def _int16_bytes(path: Path) -> int:
    """About the bytes of a CT as int16: by the header of a NIfTI, else by what lies on the disk."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        try:
            with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as handle:
                header = read_nifti_header(handle.read(540))
        except (OSError, EOFError, zlib.error):
            header = None
        return 0 if header is None else 2 * math.prod(header.shape)
    if path.is_dir():
        return sum(file.stat().st_size for file in files_below(path))
    return path.stat().st_size if path.is_file() else 0


def seconds_estimate(items: int, config: DrrConfig, workers: int) -> float:
    """Return a rough duration for planning; a large CT takes longer to read."""
    each = READ_SECONDS + config.poses * config.size**2 * 256 * SECONDS_PER_SAMPLE
    return items * each / max(1, min(workers, items))
