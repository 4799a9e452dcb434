from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedprior.imaging.contact_sheet import contact_sheet, picture_tile, volume_tile
from embedprior.imaging.findings import lungs_complete
from embedprior.imaging.lungs import audit_lungs, find_lungs, lung_box
from embedprior.imaging.readers import read_volume
from embedprior.imaging.resampling import grid_of, resample_onto
from embedprior.imaging.volume import Volume

from .conftest import chest

INCOMPLETE = {"LungFCP-01-0001": "base-cut", "RIDERpilot-0117": "apex-cut", "ACRIN-FLT-Breast_013": "apex-cut"}
BORDER = "pyradiomics-lung1"
DRAWN = (chest() > -910) & (chest() < -790)


def made(hu: np.ndarray) -> Volume:
    return Volume(np.ascontiguousarray(hu), (5.0, 5.0, 6.0))


def test_drawn_lungs_are_found_with_their_volume() -> None:
    lungs = find_lungs(made(chest()))
    assert lungs.ml == pytest.approx(DRAWN.sum() * 0.15, rel=0.05)
    assert not lungs.mask[:, 30, 31:33].any()
    assert lungs_complete(audit_lungs(made(chest())))


def test_box_holds_the_drawn_lungs() -> None:
    lung = np.argwhere(DRAWN)
    box = lung_box(made(chest()), margin_mm=5.0)
    assert box is not None
    for part, low, high in zip(box, lung.min(axis=0), lung.max(axis=0), strict=True):
        assert part.start <= low
        assert part.stop > high


def test_cross_section_at_the_end_is_seen_in_full() -> None:
    areas = find_lungs(made(chest()[:20])).areas_cm2()
    assert areas[-1] == pytest.approx(DRAWN[19].sum() * 0.25, rel=0.05)


@pytest.mark.parametrize("part, code", [(slice(None, 20), "apex-cut"), (slice(20, None), "base-cut")])
def test_half_a_chest_is_flagged_at_the_end_that_is_cut(part: slice, code: str) -> None:
    found = audit_lungs(made(chest()[part]))
    assert {f.code for f in found} & {"apex-cut", "base-cut"} == {code}
    assert not lungs_complete(found)


def test_blank_slices_at_the_end_do_not_hide_a_cut() -> None:
    half = chest()[:20]
    blank = np.full((4, 64, 64), -1024, np.int16)
    assert "apex-cut" in {f.code for f in audit_lungs(made(np.concatenate([half, blank])))}


def test_lungs_that_touch_the_side_of_the_scan_are_kept() -> None:
    narrow = made(chest()[:, :, 12:52])
    assert find_lungs(narrow).ml > 0.6 * find_lungs(made(chest())).ml


def test_foam_beside_the_body_is_no_lung() -> None:
    hu = chest()
    alone = find_lungs(made(hu)).ml
    hu[:, 56:62] = -900
    assert find_lungs(made(hu)).ml == pytest.approx(alone, rel=0.02)


def test_no_lungs() -> None:
    found = audit_lungs(made(np.where(chest() < -300, 30, chest()).astype(np.int16)))
    assert "no-lungs" in {f.code for f in found}
    assert not lungs_complete(found)


def test_contact_sheet_draws_every_exam(tmp_path: Path) -> None:
    from PIL import Image

    volume = made(chest())
    half = volume.crop((slice(0, 20), slice(None), slice(None)))
    tiles = [volume_tile("one", volume, audit_lungs(volume)), volume_tile("two", half, [])]
    contact_sheet(tiles, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    assert sheet.shape[2] == 3
    assert (np.abs(sheet - (255, 90, 60)).sum(axis=2) == 0).sum() > 200
    contact_sheet([picture_tile("p", np.eye(64, dtype=np.float32), [], "64 x 64")], tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 500


def test_real_volumes_complete_and_cut(shared_data: Path) -> None:
    files = sorted((shared_data / "ct").glob("*.nii.gz"))
    assert len(files) == 17
    for file in files:
        name = file.name.removesuffix(".nii.gz")
        volume, findings = read_volume(file)
        cut = {f.code for f in findings} & {"apex-cut", "base-cut", "no-lungs"}
        assert cut == ({INCOMPLETE[name]} if name in INCOMPLETE else set()), name
        assert lungs_complete(findings) == (name not in INCOMPLETE)
        if name == BORDER:
            assert find_lungs(volume).ml > 2000
        if name.startswith("ACRIN"):
            assert "short-field" in {f.code for f in findings}


def test_real_dicom_and_nifti_agree_on_the_same_grid(shared_data: Path) -> None:
    dicom, findings = read_volume(shared_data / "ct" / "LIDC-IDRI-0001_dicom.zip")
    nifti, _ = read_volume(shared_data / "ct" / "LIDC-IDRI-0001.nii.gz")
    assert dicom.shape == (133, 512, 512)
    assert {f.code for f in findings} == {"below-air"}
    ours = resample_onto(dicom, grid_of(nifti)).hu.ravel().astype(np.float64)
    other = nifti.hu.ravel().astype(np.float64)
    assert np.corrcoef(ours, other)[0, 1] >= 0.99
    assert np.median(np.abs(ours - other)[other > -500]) <= 10
    flipped = resample_onto(dicom, grid_of(nifti)).hu[:, :, ::-1].ravel().astype(np.float64)
    assert np.corrcoef(flipped, other)[0, 1] < 0.95


@pytest.mark.slow
def test_real_complete_volumes_cut_at_a_third_are_flagged(shared_data: Path) -> None:
    for file in sorted((shared_data / "ct").glob("*.nii.gz")):
        if file.name.removesuffix(".nii.gz") in INCOMPLETE:
            continue
        volume, _ = read_volume(file)
        lungs = find_lungs(volume)
        slices = np.flatnonzero(lungs.mask.any(axis=(1, 2))) * lungs.factors[0]
        low, high = int(slices[0]), int(slices[-1])
        third = (high - low) // 3
        top = volume.crop((slice(0, high - third), slice(None), slice(None)))
        bottom = volume.crop((slice(low + third, None), slice(None), slice(None)))
        assert "apex-cut" in {f.code for f in audit_lungs(top)}, file.name
        assert "base-cut" in {f.code for f in audit_lungs(bottom)}, file.name


def with_abdomen(gas: int | None) -> np.ndarray:
    """The drawn chest on 20 slices of abdomen; with gas in stomach and colon, close under the left lung and below."""
    body = chest()[0].copy()
    hu = np.concatenate([np.repeat(body[None], 20, axis=0), chest()])
    if gas is not None:
        z, y, x = np.mgrid[: hu.shape[0], : hu.shape[1], : hu.shape[2]].astype(float)
        x, y = (x - 32) * 5, (y - 32) * 5
        stomach = ((x - 60) / 50) ** 2 + ((y + 25) / 40) ** 2 + ((z - 19) / 4) ** 2 < 1
        colon = ((x / 110) ** 2 + ((y + 40) / 28) ** 2 < 1) & (z < 8)
        hu[(stomach | colon) & (hu > -500)] = gas
    return hu


@pytest.mark.parametrize("gas", [-950, -965, -990, -1000])
def test_bowel_gas_is_no_lung(gas: int) -> None:
    plain, filled = (find_lungs(made(with_abdomen(g))) for g in (None, gas))
    assert filled.ml == pytest.approx(plain.ml, rel=0.01)
    assert lung_box(made(with_abdomen(gas))) == lung_box(made(with_abdomen(None)))
    assert not {f.code for f in audit_lungs(made(with_abdomen(gas)))} & {"lungs-touch-end", "base-cut"}


def test_mottled_bowel_below_the_lungs_is_no_lung() -> None:
    hu = with_abdomen(None)
    hu[2:14, 20:36, 30:46] = -700  # air and stool, 460 ml
    assert find_lungs(made(hu)).ml == pytest.approx(find_lungs(made(with_abdomen(None))).ml, rel=0.01)


def test_a_bulla_and_emphysema_stay_lung() -> None:
    hu = chest()
    bulla = hu.copy()
    z, y, x = np.mgrid[: hu.shape[0], : hu.shape[1], : hu.shape[2]].astype(float)
    bulla[((x - 45) / 6) ** 2 + ((y - 32) / 6) ** 2 + ((z - 26) / 5) ** 2 < 1] = -960
    assert find_lungs(made(bulla)).ml == pytest.approx(find_lungs(made(hu)).ml, rel=0.02)
    dark = np.where(DRAWN, hu - 95, hu).astype(np.int16)
    assert find_lungs(made(dark)).ml == pytest.approx(find_lungs(made(hu)).ml, rel=0.05)


def test_lungs_of_one_volume_are_found_once_and_of_another_anew() -> None:
    volume = made(chest())
    assert find_lungs(volume) is find_lungs(volume)
    assert find_lungs(volume.with_hu(chest() // 2)) is not find_lungs(volume)


@pytest.mark.parametrize("gas", [-950, -965])
def test_a_stomach_bubble_under_a_raised_diaphragm_is_no_lung(gas: int) -> None:
    raised = chest()
    raised[:22, :, 32:][raised[:22, :, 32:] < -500] = 40
    raised[:22][chest()[:22] < -920] = -1000  # the air around the body stays
    z, y, x = np.mgrid[:40, :64, :64].astype(float)
    bubble = raised.copy()
    bubble[((x - 45) / 9) ** 2 + ((y - 30) / 8) ** 2 + ((z - 15) / 4.5) ** 2 < 1] = gas
    assert find_lungs(made(bubble)).ml == pytest.approx(find_lungs(made(raised)).ml, rel=0.01)
    assert lung_box(made(bubble)) == lung_box(made(raised))
