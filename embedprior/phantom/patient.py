"""Virtual patients: a seed and an index in, a chest CT in Hounsfield units with its findings out. Plain numpy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedprior.phantom.anatomy import (
    SHOULDER_Z,
    Anatomy,
    as_attributes,
    diaphragm_height,
    heart_distance,
    lung_shares,
    mediastinum_half_width,
    sample_anatomy,
    spine_x,
    wall_distance,
)
from embedprior.phantom.findings import (
    EFFUSION_HU,
    Effusion,
    Lesion,
    PhantomConfig,
    add_distractors,
    effusion_share,
    lesion_share,
    sample_effusion,
    sample_lesion,
)
from embedprior.phantom.space import Array, Grid, ellipsoid, fill, fill_air, inside, make_grid, mix, sections, splat
from embedprior.phantom.structures import (
    airways,
    back_of_spine,
    breastbone,
    collar_bones,
    great_vessels,
    lung_vessels,
    ribs,
    shoulder_blades,
    vertebral_bodies,
)

AIR_HU, FAT_HU, MUSCLE_HU = -1000.0, -100.0, 50.0
STREAMS = ("status", "anatomy", "vessels", "texture", "distractors", "lesion", "effusion", "noise")


@dataclass(frozen=True)
class VirtualPatient:
    """One patient.

    volume: (Z, Y, X) int16 HU, head at the last slice, the patient's left at high X.
    spacing_mm: (z, y, x).
    affine: 4 x 4 voxel index (x, y, z) → LPS mm, origin mid-chest.
    label: 1 with the lesion, else 0.
    secondary_sign: a pleural effusion is present.
    lesion: what was painted, or None.
    effusion: what was painted, or None.
    lesion_centre_mm: LPS mm of the lesion in the CT, or None.
    attributes: build of the patient by name, for stratified reading.
    """

    index: int
    volume: NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]
    label: int
    secondary_sign: bool
    lesion: Lesion | None
    effusion: Effusion | None
    lesion_centre_mm: tuple[float, float, float] | None
    attributes: dict[str, float] = field(default_factory=dict)


def virtual_patient(
    config: PhantomConfig, seed: int, index: int, label: int | None = None, secondary_sign: bool | None = None
) -> VirtualPatient:
    """Build patient `index` of the population `seed`: always the same for the same three arguments.

    Every part draws from its own random stream, so the body, its harmless findings and the noise do not depend on the
    label: a patient differs from their own healthy counterfactual in the lesion and the effusion only.

    Args:
        config: the population.
        seed: of the population.
        index: of the patient.
        label: overrules the drawn label (for counterfactuals).
        secondary_sign: overrules whether an effusion is present.
    """
    streams = {
        name: np.random.default_rng(np.random.SeedSequence([seed, index, number]))
        for number, name in enumerate(STREAMS)
    }
    with_lesion, with_sign = streams["status"].uniform(size=2)
    drawn = int(with_lesion < config.prevalence) if label is None else label
    rate = config.sign_rate_positive if drawn else config.sign_rate_negative
    sign = bool(with_sign < rate) if secondary_sign is None else secondary_sign

    anatomy = sample_anatomy(streams["anatomy"])
    grid = make_grid(config.shape, config.spacing_mm, anatomy.turn, anatomy.scale)
    lung = lung_shares(anatomy, grid)
    hu = _body(anatomy, grid)
    parenchyma = _parenchyma(anatomy, grid, streams["texture"])
    mix(hu, lung, parenchyma)
    _organs(anatomy, grid, hu, lung, streams["vessels"])
    add_distractors(config, anatomy, grid, hu, lung, streams["distractors"])

    effusion = sample_effusion(config, streams["effusion"])
    if sign:
        box, share = effusion_share(effusion, anatomy, grid)
        fill_air(hu[box], share * lung[box], EFFUSION_HU, parenchyma[box])
    lesion = sample_lesion(config, anatomy, streams["lesion"])
    if drawn:
        box, share = lesion_share(lesion, grid)
        fill_air(hu[box], share * lung[box], lesion.hu, parenchyma[box])
    hu += config.noise_hu * streams["noise"].standard_normal(hu.shape, dtype=np.float32)

    centre = grid.to_index(np.array([lesion.centre]))[0] - (np.array(config.shape) - 1) / 2
    z, y, x = centre * np.array(config.spacing_mm)
    return VirtualPatient(
        index=index,
        volume=np.clip(np.rint(hu), -1024, 3071).astype(np.int16),
        spacing_mm=config.spacing_mm,
        affine=_affine(config),
        label=drawn,
        secondary_sign=sign,
        lesion=lesion if drawn else None,
        effusion=effusion if sign else None,
        lesion_centre_mm=(float(x), float(y), float(z)) if drawn else None,
        attributes=as_attributes(anatomy),
    )


def _affine(config: PhantomConfig) -> NDArray[np.float64]:
    z, y, x = config.spacing_mm
    affine = np.diag([x, y, z, 1.0])
    counts = np.array(config.shape[::-1])
    affine[:3, 3] = -(counts - 1) / 2 * np.array([x, y, z])
    return affine


def _body(a: Anatomy, grid: Grid) -> Array:
    """Wall, fat, belly and mediastinal fat, without lungs."""
    x, y, z = grid.x, grid.y, grid.z
    # below the shoulders the wall is the same at every level: one slice does for all
    shoulders = int(np.searchsorted(z.ravel(), SHOULDER_Z))
    skin = np.empty(grid.shape, np.float32)
    skin[:shoulders] = wall_distance(a, x, y, z[:1], 0.0)
    skin[shoulders:] = wall_distance(a, x, y, z[shoulders:], 0.0)
    hu = AIR_HU + inside(skin, grid.edge) * np.float32(FAT_HU - AIR_HU)
    if a.breast > 0:
        for side in (-1, 1):
            size = a.breast * np.array([62.0, 46.0, 50.0])
            centre = np.array([side * 70.0, 6 - a.lung_depth - a.fat, -40.0])
            box = grid.box(centre - size, centre + size * np.array([1, 1, 2]))
            bx, by, bz = grid.at(box)
            # a breast hangs: full below, tapering upwards into the chest wall
            hung = np.where(bz > centre[2], 0.5 * (bz + np.float32(centre[2])), bz).astype(np.float32)
            breast = inside(ellipsoid(bx, by, hung, centre, size), grid.edge)
            mix(hu[box], breast * (hu[box] < FAT_HU - 1).astype(np.float32), -75.0)
    mix(hu, inside(skin + a.fat, grid.edge), MUSCLE_HU)
    floors = diaphragm_height(a, x, y, -1), diaphragm_height(a, x, y, 1)
    below = slice(0, int(np.searchsorted(z.ravel(), max(a.dome_left, a.dome_right) + grid.edge)))
    under = z[below] - np.where(x < 0, *floors) + 4
    belly = inside(np.maximum(under, skin[below] + (a.fat + 16)), grid.edge)
    mix(hu[below], belly, np.where(x < 22, np.float32(95), np.float32(40)))
    gas = a.stomach_gas
    if gas > 4:
        bubble = np.array([52.0, -8.0, a.dome_left - gas - 7])
        box = grid.box(bubble - gas * 1.3, bubble + gas * 1.3)
        mix(hu[box], inside(ellipsoid(*grid.at(box), bubble, (1.3 * gas, gas, gas)), grid.edge), -950.0)
    box = grid.box((-50, -a.lung_depth, a.recess), (50, a.lung_depth, a.apex + 4))
    x, y, z = grid.at(box)
    middle = np.maximum(np.abs(x - spine_x(a, z)) - mediastinum_half_width(a, y, z), np.abs(y + 8) - a.lung_depth + 14)
    floor = np.maximum(*floors)[:, box[1], box[2]]
    between = np.maximum(middle, np.maximum(floor + 4 - z, z - a.apex))
    mix(hu[box], inside(between, grid.edge), -70.0)
    return hu


def _parenchyma(a: Anatomy, grid: Grid, rng: np.random.Generator) -> Array:
    """HU of lung without vessels: denser towards the back (lying patient), slowly varying."""
    lattice = rng.normal(0, 14, (7, 7, 7)).astype(np.float32)
    for axis, count in enumerate(grid.shape):
        at = np.linspace(0, 6, count)
        low = np.minimum(at.astype(int), 5)
        weights = np.zeros((count, 7), np.float32)
        weights[np.arange(count), low] = 1 - (at - low)
        weights[np.arange(count), low + 1] = at - low
        lattice = np.moveaxis(np.tensordot(weights, lattice, axes=(1, axis)), 0, axis)
    return np.asarray(a.lung_hu + a.lung_gradient * grid.y + lattice, np.float32)


def _organs(a: Anatomy, grid: Grid, hu: Array, lung: Array, rng: np.random.Generator) -> None:
    """Heart, great vessels, airways, bones and lung vessels, in place."""
    step = 0.5 * min(grid.spacing) / grid.scale
    box = grid.box((-90, -110, -140), (130, 60, 60))
    heart = heart_distance(a, *grid.at(box))
    mix(hu[box], inside(heart, grid.edge), 60 + 0.35 * (a.blood_hu - 50))
    mix(hu[box], inside(heart + 10, grid.edge), a.blood_hu)
    blood = fill(sections(great_vessels(a)), step)
    mix(hu, splat(grid, blood), a.blood_hu)
    mix(hu, splat(grid, fill(lung_vessels(a, rng), step)) * lung, a.blood_hu)
    mix(hu, splat(grid, fill(sections(airways(a)), step)), AIR_HU)
    bony, cartilage = ribs(a)
    box, share, marrow = vertebral_bodies(a, grid)
    mix(hu[box], share, marrow)
    rims, plates = shoulder_blades(a, step)
    mix(
        hu,
        splat(grid, fill(cartilage, step), fill(sections([*back_of_spine(a), *breastbone(a)]), step)),
        300.0 * a.bone,
    )
    mix(hu, splat(grid, fill(bony, step), fill(sections([*collar_bones(a), *rims]), step), plates), 600.0 * a.bone)
