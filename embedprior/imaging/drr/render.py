"""CTs on disk to radiographs on disk: artifacts named by the CT's contents and the settings, in one process or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from embedprior.errors import BadInput, EmbedpriorError
from embedprior.imaging.drr.config import DrrConfig
from embedprior.imaging.drr.dataset import Rendered, Scanned, image_name, reason_of
from embedprior.imaging.drr.display import Match, fit_tone, read_references, reference_files
from embedprior.imaging.drr.geometry import Poses, straight, volume_centre
from embedprior.imaging.drr.physics import attenuation_per_mm
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.findings import Finding, lungs_complete
from embedprior.imaging.volume import Volume, canonical, read_volume
from embedprior.runs import artifact, one_thread, progress, read_json, seed_for, write_json

if TYPE_CHECKING:
    from torch import Tensor

CODE_TAG = "drr-1"
"""Raise the number whenever the same CT and settings give other pixels; a golden test notices."""
FACTS = "ct.json"
POSES_AT_ONCE = 4


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
        made = artifact("drr", {"ct": item.digest}, config, CODE_TAG, _builder(item, config), root)
    except (UnreadableExam, OSError, MemoryError) as error:
        return Rendered(item.exam.exam_id, None, reason=reason_of(error, item.exam))
    except EmbedpriorError:
        raise
    except (ValueError, RuntimeError) as error:
        return Rendered(item.exam.exam_id, None, reason=f"{type(error).__name__}: {reason_of(error, item.exam)}")
    facts = read_json(made.path / FACTS)
    findings = tuple(Finding(f["code"], f["message"]) for f in facts["findings"])
    return Rendered(item.exam.exam_id, made.path, bool(facts["complete"]), findings, made.reused)


def _builder(item: Scanned, config: DrrConfig) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        volume, findings = read_volume(item.exam.path, config.series)
        centre = isocentre(volume, config.centre)
        poses = poses_of(config, item.digest)
        with one_thread():
            integrals = project(volume, config, poses, centre)
            noise = [seed_for(config.seed, "noise", item.digest, k) for k in range(config.poses)]
            pixels = develop(integrals, config, noise)
        for k, picture in enumerate(pixels):
            write_png16(picture, folder / f"{image_name(k)}.png")
            write_json(folder / f"{image_name(k)}.json", sidecar(item.digest, config, poses, centre, k))
        write_json(folder / FACTS, facts_of(volume, findings))

    return build


def poses_of(config: DrrConfig, digest: str) -> Poses:
    """Return the poses of one CT: the first straight, pose k drawn from a stream of its own."""
    import torch

    still = straight(1)
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
        from embedprior.imaging.lungs import LEAST_ML, find_lungs

        lungs = find_lungs(volume)
        if lungs.ml >= LEAST_ML:
            upright = canonical(volume)
            middle = []
            for axis in range(3):
                hit = np.flatnonzero(lungs.mask.any(axis=tuple(a for a in range(3) if a != axis)))
                middle.append((hit[0] + hit[-1] + 1) * lungs.factors[axis] / 2 - 0.5)
            return np.asarray((upright.affine @ np.array([*middle[::-1], 1.0]))[:3])
    return volume_centre(volume.shape, volume.affine)


def continued(volume: Volume, overhang_mm: float) -> Volume:
    """Return the volume with its first and last slice towards head and feet repeated for this many mm."""
    if overhang_mm <= 0:
        return volume
    upright = canonical(volume)
    count = int(np.ceil(overhang_mm / upright.spacing_mm[2]))
    origin = (upright.affine @ np.array([0.0, 0.0, -count, 1.0]))[:3]
    hu = np.pad(upright.hu, ((count, count), (0, 0), (0, 0)), mode="edge")
    x, y, z = (float(v) for v in origin)
    return replace(upright, hu=hu, origin_mm=(x, y, z))


def attenuation(volume: Volume, energy_kev: float) -> Tensor:
    """Return the volume's attenuation in mm⁻¹, (z, y, x) float32."""
    import torch

    from embedprior.imaging.drr.physics import hu_to_mu

    return hu_to_mu(torch.from_numpy(np.ascontiguousarray(volume.hu)).float(), energy_kev)


def project(volume: Volume, config: DrrConfig, poses: Poses, centre: Float[np.ndarray, " 3"]) -> Tensor:
    """Return the line integrals of a CT, (poses, size, size)."""
    import torch

    from embedprior.imaging.drr.renderers import get_renderer

    render = get_renderer(config.renderer)
    volume = continued(volume, config.overhang_mm)
    with torch.inference_mode():
        mu = attenuation(volume, config.energy_kev)
        batches = [slice(k, k + POSES_AT_ONCE) for k in range(0, len(poses), POSES_AT_ONCE)]
        parts = [
            render(mu, volume.affine, config.geometry, Poses(poses.angles_deg[b], poses.shift_mm[b]), centre)
            for b in batches
        ]
        return torch.cat(parts)


def develop(integrals: Tensor, config: DrrConfig, noise_seeds: list[int]) -> Float[np.ndarray, "poses size size"]:
    """Return grey values in [0, 1] of line integrals; image k takes its quantum noise from seed k."""
    from embedprior.imaging.drr.display import to_radiograph

    pitch = config.geometry.pitch
    images = [
        np.asarray(to_radiograph(one[None], config.appearance, pitch, seed))
        for one, seed in zip(integrals, noise_seeds, strict=True)
    ]
    return np.concatenate(images)


def write_png16(grey: Float[np.ndarray, "height width"], path: Path) -> None:
    """Write grey values in [0, 1] as a 16-bit PNG."""
    from PIL import Image

    Image.fromarray(np.round(grey.astype(np.float64) * 65535).astype(np.uint16)).save(path)


def sidecar(digest: str, config: DrrConfig, poses: Poses, centre: Float[np.ndarray, " 3"], k: int) -> dict[str, Any]:
    """Return everything needed to make image k again from its CT."""
    geometry = config.geometry
    return {
        "source_sha256": digest,
        "code": CODE_TAG,
        "renderer": config.renderer,
        "geometry": {
            "view": geometry.view,
            "source_to_detector_mm": geometry.source_to_detector,
            "source_to_isocentre_mm": geometry.source_to_isocentre,
            "pixels": [geometry.height, geometry.width],
            "pitch_mm": geometry.pitch,
            "isocentre_lps_mm": [round(float(v), 6) for v in centre],
            "centre": config.centre,
            "overhang_mm": config.overhang_mm,
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


def facts_of(volume: Volume, findings: list[Finding]) -> dict[str, Any]:
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
FIT_CTS, FIT_SIZE = 12, 112


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
    return list(progress(_pooled(work, items, min(workers, len(items))), desc, total=len(items)))


def seconds_estimate(items: int, config: DrrConfig, workers: int) -> float:
    """Return a rough duration for planning; a large CT takes longer to read."""
    each = READ_SECONDS + config.poses * config.size**2 * 256 * SECONDS_PER_SAMPLE
    return items * each / max(1, min(workers, items))


def tone_for(items: Sequence[Scanned], config: DrrConfig, references: Path) -> Match:
    """Fit the tone curve of a run to a folder of radiographs, on small straight images of its first CTs.

    Raises:
        BadInput: see ``matching.reference_files`` and ``read_references``; or no CT can be read.
    """
    pictures = read_references(reference_files(references, config.view))
    small = config.model_copy(update={"size": FIT_SIZE, "poses": 1})
    from embedprior.imaging.drr.display import expose

    made = []
    with one_thread():
        for item in progress(items[:FIT_CTS], "tone", total=min(len(items), FIT_CTS)):
            try:
                volume, _ = read_volume(item.exam.path, config.series)
            except UnreadableExam:
                continue  # its failure is recorded when its turn to be rendered comes
            integrals = project(volume, small, poses_of(small, item.digest), isocentre(volume, config.centre))
            # noise changes no quantile that matters, and one seed must not depend on the order of the CTs
            still = config.appearance.model_copy(update={"photons_per_mm2": None})
            made.append(expose(integrals, still, small.geometry.pitch)[0].numpy())
    if not made:
        raise BadInput("--match-style: none of the first CTs can be read. Next: run without it to see why.")
    return fit_tone(made, pictures, config.appearance)


def _pooled(work: Callable[[Scanned], Rendered], items: Sequence[Scanned], workers: int) -> Iterator[Rendered]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # a forked child inherits the locks of torch's threads, and hangs on them
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, items)
