"""How fast, how lean and how alike: the plane sweep against DiffDRR and nanodrr, one thread each, same volume and run.

Each peer's set-up is left out of its time. Seconds are CPU seconds of this process, and a ratio
compares runs made back to back, so that other work on the machine disturbs it little. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common.measuring import Table, cpu_seconds, extra_mib, ratio

from embedprior.imaging.drr import Poses, chest_geometry, random_poses, renderers
from embedprior.imaging.drr.physics import hu_to_mu, render_planesweep
from embedprior.phantom import PhantomConfig, virtual_patient

SIDE_MM = 336.0


def ncc(a: torch.Tensor, b: torch.Tensor) -> float:
    """Normalised cross-correlation of two images."""
    a, b = (image.double().flatten() - image.double().mean() for image in (a, b))
    return float(a @ b / (a.norm() * b.norm()))


def measure(table: Table, side: int, size: int, peers: dict[str, float | None], repeats: int) -> None:
    """Add the rows of one volume side and image size; `peers` maps a peer's name to the ratio it must reach, if any."""
    spacing = SIDE_MM / side
    patient = virtual_patient(PhantomConfig(shape=(side,) * 3, spacing_mm=(spacing,) * 3), 20_000, 0)
    mu = hu_to_mu(torch.from_numpy(patient.volume.astype(np.float32)))
    geometry = chest_geometry("PA", size)
    where = f"{side}^3 to {size}^2"

    def hold(name: str, value: float, unit: str, least: float | None = None, most: float | None = None) -> None:
        table.hold(name, value, unit, least, most, case=where)

    extra = extra_mib(lambda: render_planesweep(mu, patient.affine, geometry))
    own = render_planesweep(mu, patient.affine, geometry)[0]

    def one() -> torch.Tensor:
        return render_planesweep(mu, patient.affine, geometry)

    hold("plane sweep", cpu_seconds(one, repeats), "s")
    hold("  peak memory beyond the volume", extra, "MiB", most=100)
    hold("  over reading the volume once", 1 / ratio(mu.sum, one, repeats), "x")
    poses = random_poses(8, 10.0, 20.0, seed=1)
    single = [Poses(poses.angles_deg[i : i + 1], poses.shift_mm[i : i + 1]) for i in range(len(poses))]
    together = ratio(
        lambda: render_planesweep(mu, patient.affine, geometry, poses),
        lambda: [render_planesweep(mu, patient.affine, geometry, pose) for pose in single],
        max(1, repeats // 3),
    )
    hold("  8 poses at once over one by one", together, "x", most=1.25)
    turned = ratio(lambda: render_planesweep(mu, patient.affine, geometry, poses), lambda: [one() for _ in single], 1)
    hold("  poses turned up to 10 degrees over straight ones (another way)", turned, "x")

    def one_turned() -> torch.Tensor:
        return render_planesweep(mu, patient.affine, geometry, single[1])

    siddon = renderers.prepare_diffdrr("siddon", mu, patient.affine, geometry)
    behind = ratio(siddon, one_turned, max(1, repeats // 3))
    hold("DiffDRR Siddon, time over a turned plane sweep's", behind, "x", least=50.0)
    setups: dict[str, Callable[[], Callable[[], torch.Tensor]]] = {
        "DiffDRR Siddon": lambda: renderers.prepare_diffdrr("siddon", mu, patient.affine, geometry),
        "DiffDRR Siddon, patch_size=32": lambda: renderers.prepare_diffdrr(
            "siddon", mu, patient.affine, geometry, patch_size=32
        ),
        "DiffDRR trilinear, 500 samples": lambda: renderers.prepare_diffdrr(
            "trilinear", mu, patient.affine, geometry, n_points=500
        ),
        "nanodrr, 500 samples": lambda: renderers.prepare_nanodrr(mu, patient.affine, geometry),
        "nanodrr, 250 samples, 4096 rays at once": lambda: renderers.prepare_nanodrr(
            mu, patient.affine, geometry, samples=250, rays_at_once=4096
        ),
    }
    for name, least in peers.items():
        work = setups[name]()
        extra = extra_mib(work)
        theirs = work()[0]
        hold(f"{name}, time over plane sweep's", ratio(work, one, max(1, repeats // 3)), "x", least=least)
        hold("  its peak memory beyond the volume", extra, "MiB")
        hold("  likeness (NCC)", ncc(own, theirs), "", least=0.9995 if "Siddon" in name else 0.9999)
        hold("  ratio of means, off 1", abs(float(own.mean() / theirs.mean()) - 1), "", most=1e-3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="256^3 to 224^2 only, without the slowest peers")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table()
    everything: dict[str, float | None] = {
        "DiffDRR Siddon": 100.0,
        "DiffDRR Siddon, patch_size=32": None,
        "DiffDRR trilinear, 500 samples": None,
        "nanodrr, 500 samples": None,
        "nanodrr, 250 samples, 4096 rays at once": 5.0,
    }
    with torch.inference_mode():
        measure(table, 256, 224, everything, 3 if args.quick else 9)
        if not args.quick:
            measure(table, 256, 512, everything, 3)
    return table.finish(args.json, torch=torch.__version__)


if __name__ == "__main__":
    sys.exit(main())
