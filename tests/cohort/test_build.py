"""From a hospital's export to the tables of a cohort: what is found, matched, dropped with its reason, and paired."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from embedprior.cache import write_cache
from embedprior.cli import main
from embedprior.cohort.build import pair_in_window
from embedprior.cohort.labels import parse_dates, parse_label, read_label_table
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput

HEAD = "PatientID;StudyDate;Modality;finding;AP/PA;Sex;File\n"


def picture(folder: Path, name: str, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (9, 9)).astype(np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)
    return folder / name


def chest_ct(file: Path, seed: int, slices: slice = slice(None)) -> None:
    """A body of water with two lungs, 8 mm voxels, from above the apices to below the bases; or a part of it."""
    z, y, x = np.mgrid[-1:1:40j, -1:1:48j, -1:1:48j]
    hu = np.where((x / 0.9) ** 2 + (y / 0.65) ** 2 < 1, 40, -1000)
    for side in (-0.4, 0.4):
        hu[((x - side) / 0.28) ** 2 + (y / 0.42) ** 2 + (z / 0.7) ** 2 < 1] = -850
    hu = hu + np.random.default_rng(seed).normal(0, 10, hu.shape)
    np.savez(file, hu=np.clip(hu, -1024, 2000).astype(np.int16)[slices], spacing_mm=(8.0, 8.0, 8.0))


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Two CTs, seven radiographs, a table with ``;``, a byte order mark, accents and two ways of writing dates."""
    folder = tmp_path / "export"
    for number in range(7):
        picture(folder, f"CXR/IMG{number}.png", number)
    (folder / "CT").mkdir()
    for number in (1, 2):
        chest_ct(folder / "CT" / f"scan{number}.npz", number)
    lines = [
        "001;20210325;CR;COVID-19 (müde);PA;F;CXR/IMG0.png",
        "001;25/03/2021;DX;Pneumonia;L;F;CXR\\IMG1.png",  # a lateral; a path of Windows
        "001;26/03/2021;CR;COVID-19;AP;F;IMG2",  # a name without its ending; after the CT
        "002;01/02/2021;CR;todo;PA;M;CXR/IMG3.png",  # no answer
        "002;;CR;No Finding;PA;M;CXR/IMG4.png",  # no date
        "003;20210325;CR;No Finding;PA;M;CXR/IMG5.png",  # no CT
        "003;20210325;CR;No Finding;PA;M;CXR/IMG5.png",  # the same row again
        "004;20210325;CR;No Finding;PA;M;CXR/none.png",  # no such file
        ";20210325;CR;No Finding;PA;M;CXR/IMG6.png",  # nobody's
        "001;20210325;CT;COVID-19;;F;CT/scan1.npz",
        "002;20210203;CT;No Finding;;M;CT/scan2.npz",
    ]
    (folder / "labels.csv").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8-sig")
    return folder


def words(export: Path, out: Path, *more: str) -> list[str]:
    given = ["--ct", str(export / "CT"), "--cxr", str(export / "CXR"), "--labels", str(export / "labels.csv")]
    return ["cohort", "build", *given, "--label", "covid=finding~COVID", "--out", str(out), *more]


def test_an_export_becomes_tables_and_every_drop_has_its_reason(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cohort"
    assert main(words(export, out, "--window", "48h")) == 3
    told = capsys.readouterr().out
    assert "11 rows, separated by semicolon, UTF-8 with a byte order mark" in told
    assert "StudyDate: 7 as YYYYMMDD, 3 as DD/MM/YYYY." in told
    exams = pd.read_csv(out / "exams.csv", dtype={"patient_id": str}).set_index("exam_id")
    assert sorted(exams.index) == ["IMG0", "IMG1", "IMG2", "IMG3", "IMG4", "IMG5", "scan1", "scan2"]
    assert exams["modality"].value_counts().to_dict() == {"CXR": 6, "CT": 2}
    assert exams.loc["IMG1", "view"] == "LATERAL"
    assert exams["label:covid"].to_dict() | {"IMG3": None} == {
        "IMG0": 1, "IMG1": 0, "IMG2": 1, "IMG3": None, "IMG4": 0, "IMG5": 0, "scan1": 1, "scan2": 0,
    }  # fmt: skip
    assert np.isnan(exams.loc["IMG3", "label:covid"])
    assert all((out / path).exists() for path in exams["path"])
    # IMG0 is at the CT's time, IMG2 a day after it: the one before comes first, and a CT has one radiograph
    pairs = pd.read_csv(out / "pairs.csv")
    assert pairs[["cxr_exam_id", "ct_exam_id", "offset_days"]].to_numpy().tolist() == [
        ["IMG0", "scan1", 0.0], ["IMG3", "scan2", 2.0],
    ]  # fmt: skip
    assert pairs["label_agree"].iloc[0] == 1
    assert np.isnan(pairs["label_agree"].iloc[1])
    dropped = pd.read_csv(out / "dropped.csv", dtype=str)
    reasons = dropped.groupby("reason")["name"].apply(list).to_dict()
    assert reasons == {
        "the same row again": ["CXR/IMG5.png"],
        "no such file, or nothing that can be read": ["CXR/none.png"],
        "no patient id": ["CXR/IMG6.png"],
        "no row in the label table": ["IMG6.png"],
        "another view": ["IMG1"],
        "the patient has no CT": ["IMG5"],
        "the time is unknown": ["IMG4"],
        "its CT is paired with another radiograph": ["IMG2"],
    }
    flow = pd.read_csv(out / "flow.csv")
    rows = flow[flow["step"].isin(["with a patient", "each row once", "file found"])]
    assert rows["exams"].tolist() == [10, 9, 8]
    # a shorter window, to the hour
    assert main(words(export, tmp_path / "day", "--window", "24h")) == 3
    assert pd.read_csv(tmp_path / "day" / "pairs.csv")["ct_exam_id"].tolist() == ["scan1"]


def test_init_finds_the_table_and_the_exams_of_one_folder(export: Path) -> None:
    assert main(["init", "--from-folder", str(export), "--label", "covid=finding~COVID"]) == 3
    out = export.parent / "export-cohort"
    assert len(pd.read_csv(out / "exams.csv")) == 8
    assert (
        main(["study", "plan", "--config", str(out / "study.yaml"), "--data", str(out), "--out", str(out / "s")]) == 2
    )


def test_the_study_that_is_written_runs(tmp_path: Path) -> None:
    lines = []
    for number in range(24):
        picture(tmp_path / "in", f"p{number}.png", number)
        lines.append(f"{number},{'yes' if number % 2 else 'no'},p{number}.png")
    (tmp_path / "in" / "labels.csv").write_text("patient,nodule,file\n" + "\n".join(lines) + "\n")
    out = tmp_path / "cohort"
    assert main(["init", "--from-folder", str(tmp_path / "in"), "--label", "nodule=nodule", "--out", str(out)]) == 0
    text = (out / "study.yaml").read_text()
    (out / "study.yaml").write_text(
        text.replace("efficientnet-lite0}", "pixels-128, options: {}}").replace("folds: 5", "folds: 3")
    )
    words = ["--config", str(out / "study.yaml"), "--data", str(out), "--out", str(tmp_path / "s"), "--fit.steps", "5"]
    assert main(["study", "run", *words, "--seeds", "[1, 2, 3]"]) == 0
    assert len(pd.read_csv(tmp_path / "s" / "predictions.csv")) > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--map", "Fall=patient_id"], "no column 'Fall'"),
        (["--map", "Sex=gender"], "'gender'. Allowed: patient_id"),
        (["--label", "x=findng~A"], "Did you mean 'finding'"),
        (["--label", "x=finding"], "say neither yes nor no: 'No Finding' (6)"),
        (["--window", "a day"], "--window a day. Allowed: hours or days"),
        (["--views", "PAX"], "unknown view 'PAX'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_written(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(words(export, tmp_path / "out", *more)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_any_separator_and_encoding_is_read(tmp_path: Path, encoding: str, separator: str) -> None:
    rows = [["MRN", "Image Index", "Befund"], ["007", "a.png", "Größe, unklar"], ["8", "b.png", "o. B."]]
    quoted = ["\n".join(separator.join(f'"{cell}"' for cell in row) for row in rows)]
    (tmp_path / "t.csv").write_text(quoted[0], encoding=encoding)
    table = read_label_table(tmp_path / "t.csv")
    assert dict(table.column_of) == {"patient_id": "MRN", "path": "Image Index"}
    assert table.rows.to_numpy().tolist() == rows[1:]


def test_dates_of_one_column_are_read_as_the_column_shows() -> None:
    dates = pd.Series(["03/04/2021", "25/04/2021", "20210506", "2021-05-07", "", "soon"])
    times, notes = parse_dates(dates, None, "when")
    assert [t.strftime("%Y-%m-%d") for t in times[:4]] == ["2021-04-03", "2021-04-25", "2021-05-06", "2021-05-07"]
    assert times[4:].isna().all()
    assert notes[1] == "when: 1 cells are no date and count as unknown: 'soon'."
    american, _ = parse_dates(pd.Series(["03/04/2021", "04/25/2021"]), None, "when")
    assert american[0].strftime("%Y-%m-%d") == "2021-03-04"
    with pytest.raises(BadInput, match="day or month first"):
        parse_dates(pd.Series(["03/04/2021", "05/06/2021"]), None, "when")
    assert parse_dates(pd.Series(["03/04/2021"]), "mdy", "when")[0][0].month == 3
    with pytest.raises(BadInput, match="1 dates are day/month and 1 are month/day"):
        parse_dates(pd.Series(["25/04/2021", "04/25/2021"]), None, "when")


def test_labels_are_read_by_text_value_or_yes_and_no() -> None:
    rows = pd.DataFrame({"a": ["1", "yes", "NO", "n/a", "0.0"], "b": ["PE acute", "pe", "none", "", "other"]})
    assert parse_label(rows, "x=a", ())[1].fillna(-1).tolist() == [1, 1, 0, -1, 0]
    assert parse_label(rows, "x=b~pe", ())[1].fillna(-1).tolist() == [1, 1, -1, -1, 0]
    assert parse_label(rows, "x=b:PE|other", ("PE acute",))[1].fillna(-1).tolist() == [-1, 1, -1, -1, 1]


def test_pairs_are_nearest_preceding_one_to_one_and_do_not_depend_on_row_order() -> None:
    day = pd.Timestamp("2021-01-10")
    rows = [("c1", "CT", 0.0), ("c2", "CT", 1.0), ("after", "CXR", 0.1), ("before", "CXR", -0.5), ("far", "CXR", -0.9)]
    exams = pd.DataFrame(
        [(i, "p", m, day + pd.Timedelta(days=d), "") for i, m, d in rows],
        columns=["exam_id", "patient_id", "modality", "acquired_at", "view"],
    )
    # c1: before (-.5) leads far (-.9) and after (+.1); c2: after lies .9 before it
    expected = {("before", "c1"), ("after", "c2")}
    for order in ([0, 1, 2, 3, 4], [4, 2, 1, 0, 3]):
        pairs, _, lost = pair_in_window(exams.iloc[order], 24, ("PA",))
        assert set(zip(pairs["cxr_exam_id"], pairs["ct_exam_id"], strict=True)) == expected
        assert [name for name, _, reason in lost if reason.startswith("its CT")] == ["far"]


def test_check_finds_what_a_test_plants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy under another id, a cropped copy, a file that is gone and one that is damaged; a telling site."""
    rows = []
    for number in range(24):
        picture(tmp_path, f"x{number}.png", number)
        rows.append((f"x{number}", f"p{number}", "CXR", f"x{number}.png", "AB"[number % 2], number % 2))
    shutil.copy(tmp_path / "x1.png", tmp_path / "copy.png")
    Image.open(tmp_path / "x2.png").crop((4, 4, 92, 92)).save(tmp_path / "cut.png")
    (tmp_path / "x3.png").write_bytes((tmp_path / "x3.png").read_bytes()[:200])
    (tmp_path / "x4.png").unlink()
    rows += [("copy", "q1", "CXR", "copy.png", "B", 1), ("cut", "q2", "CXR", "cut.png", "A", 0)]
    columns = ["exam_id", "patient_id", "modality", "path", "site", "label:nodule"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "exams.csv", index=False)
    assert main(["cohort", "check", str(tmp_path)]) == 3
    found = pd.read_csv(tmp_path / "findings.csv", keep_default_na=False).set_index("check")
    for check, exam in (("file exists", "x4"), ("radiograph can be read", "x3")):
        assert found.loc[check, "severity"] == "decide"
        assert found.loc[check, "message"] == f"{exam}; studies leave them out and count them"
    assert found.loc["same file", "severity"] == found.loc["cropped picture", "severity"] == "decide"
    assert "an AUC of 1.000" in found.loc["label nodule from metadata", "message"]
    duplicates = pd.read_csv(tmp_path / "duplicates.csv")
    assert set(map(frozenset, duplicates[["exam_a", "exam_b"]].to_numpy())) == {
        frozenset(("x1", "copy")), frozenset(("x2", "cut")),
    }  # fmt: skip
    # a split that is written keeps both together; one that does not is found
    assert main(["cohort", "split", str(tmp_path), "--label", "nodule", "--folds", "3"]) == 0
    part = pd.read_csv(tmp_path / "splits.csv").set_index(["patient_id", "fold"])["part"]
    assert all(part[a, fold] == part[b, fold] for fold in range(3) for a, b in (("p1", "q1"), ("p2", "q2")))
    main(["cohort", "check", str(tmp_path)])
    assert pd.read_csv(tmp_path / "findings.csv").set_index("check").loc["splits.csv", "severity"] == "ok"
    table = pd.read_csv(tmp_path / "splits.csv")
    fold = table.loc[(table["patient_id"] == "q1") & (table["part"] == "test"), "fold"].iloc[0]
    table.loc[(table["patient_id"] == "q1") & (table["fold"] == fold), "part"] = "train"
    assert main(["verify", str(tmp_path)]) == 0
    table.assign(group_id=table["patient_id"]).to_csv(tmp_path / "splits.csv", index=False)
    capsys.readouterr()
    assert main(["cohort", "check", str(tmp_path)]) == 2
    assert "splits.csv" in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 3
    (tmp_path / ".checksums.json").unlink()  # as where the tables are copied to another folder
    assert main(["cohort", "check", str(tmp_path)]) == 3
    assert "2 patients, or their files, on two sides of a fold: p1, q1" in capsys.readouterr().out
    assert main(["cohort", "split", str(tmp_path), "--label", "nodule"]) == 2


def test_merged_cohorts_keep_their_exams_apart_and_join_shared_files(tmp_path: Path) -> None:
    for name, hashes in (("a", ["aa11", "bb22"]), ("b", ["bb22", "cc33"])):
        for number in range(2):
            picture(tmp_path / name, f"{number}.png", number)
        frame = pd.DataFrame(
            {"exam_id": ["e0", "e1"], "patient_id": ["1", "2"], "modality": "CXR", "path": ["0.png", "1.png"],
             "sha256": hashes, "label:x": [0, 1]}
        )  # fmt: skip
        (frame if name == "a" else frame.drop(columns="label:x")).to_csv(tmp_path / name / "exams.csv", index=False)
    assert main(["cohort", "merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "m")]) == 0
    exams = pd.read_csv(tmp_path / "m" / "exams.csv").set_index("exam_id")
    assert sorted(exams.index) == ["a/e0", "a/e1", "b/e0", "b/e1"]
    assert exams.loc["a/e1", "group_id"] == exams.loc["b/e0", "group_id"] != exams.loc["b/e1", "group_id"]
    assert exams["label:x"].isna().tolist() == [False, False, True, True]
    assert exams["site"].tolist() == ["a", "a", "b", "b"]
    assert all((tmp_path / "m" / path).is_file() for path in exams["path"])
    assert main(["cohort", "merge", str(tmp_path / "a"), "--out", str(tmp_path / "n")]) == 2


def test_drrs_are_merged_with_their_cohort_and_each_exam_stands_once(export: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    assert main(words(export, out, "--window", "48h")) == 3
    assert main(["drr", "--cohort", str(out), "--poses", "2", "--size", "64", "--out", str(tmp_path / "drr")]) == 0
    both = [str(out), str(tmp_path / "drr")]
    assert main(["cohort", "merge", *both, "--out", str(tmp_path / "all")]) == 0
    exams = pd.read_csv(tmp_path / "all" / "exams.csv", dtype={"patient_id": str}).set_index("exam_id")
    own = pd.read_csv(out / "exams.csv", dtype={"patient_id": str}).set_index("exam_id")
    assert exams["modality"].value_counts().to_dict() == {"CXR": 6, "DRR": 4, "CT": 2}
    assert exams.loc[own.index, "patient_id"].tolist() == own["patient_id"].tolist()
    assert set(exams.loc[exams["modality"] == "DRR", "patient_id"]) == {"001", "002"}
    assert exams.loc["scan1", "sha256"] == own.loc["scan1", "sha256"]
    assert all((tmp_path / "all" / path).is_file() for path in exams["path"])
    pairs = pd.read_csv(tmp_path / "all" / "pairs.csv", dtype=str)
    assert len(pairs) == 2 + 4
    assert exams.loc[pairs["cxr_exam_id"], "patient_id"].tolist() == pairs["patient_id"].tolist()
    # another cohort, whose scan1 is another patient's, stays apart
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(export / "CT" / "scan2.npz", other / "c.npz")
    pd.DataFrame([("scan1", "001", "CT", "c.npz")], columns=["exam_id", "patient_id", "modality", "path"]).to_csv(
        other / "exams.csv", index=False
    )
    assert main(["cohort", "merge", *both, str(other), "--out", str(tmp_path / "three")]) == 0
    exams = pd.read_csv(tmp_path / "three" / "exams.csv", dtype=str)
    assert len(exams) == 13
    assert set(exams.loc[exams["exam_id"].str.endswith("/scan1"), "patient_id"]) == {"cohort/001", "other/001"}


def test_nearly_equal_embeddings_of_a_cache_are_found_where_no_picture_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    ids = [f"e{n}" for n in range(30)]
    values = rng.normal(size=(30, 64)).astype(np.float32)
    values[17] = values[3] + 0.02 * rng.normal(size=64)
    spec = EncoderSpec(name="net", modality="CXR", dim=64, source="a test", weights_sha256="none", licence="none",
                       profile={"side": 8}, pooling="mean")  # fmt: skip
    write_cache(tmp_path / "cache", spec, ids, [f"{n:064x}" for n in range(30)], values)
    frame = pd.DataFrame({"exam_id": ids, "patient_id": [f"p{n}" for n in range(30)], "modality": "CXR",
                          "path": [f"{i}.png" for i in ids]})  # fmt: skip
    frame.to_csv(tmp_path / "exams.csv", index=False)
    assert main(["cohort", "check", str(tmp_path), "--cache", str(tmp_path / "cache")]) == 3
    found = pd.read_csv(tmp_path / "findings.csv").set_index("check")
    assert found.loc["same embedding", ["severity", "exams"]].tolist() == ["decide", 2]
    pairs = pd.read_csv(tmp_path / "duplicates.csv")
    assert pairs[["exam_a", "exam_b"]].to_numpy().tolist() == [["e3", "e17"]]
    assert main(["cohort", "check", str(tmp_path), "--cache", str(tmp_path / "nothing")]) == 2


def test_an_encoder_of_pictures_is_not_asked_to_read_volumes(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cohort"
    main(words(export, out))
    embed = ["embed", "--cohort", str(out), "--encoder", "pixels-128", "--out", str(tmp_path / "c")]
    assert main([*embed, "--modality", "CT"]) == 2
    assert "encoder 'pixels-128' reads pictures. Next: --option reader=slices" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    assert main(embed) == 0  # left to itself it takes the radiographs
    assert "2 exams of other modalities are left out" in capsys.readouterr().err
    assert main(["embed", "--cohort", str(export), "--encoder", "pixels-128", "--out", str(tmp_path / "d")]) == 2
    assert "is a folder without exams.csv. Next: embedprior cohort build" in capsys.readouterr().err


def test_a_letter_of_another_case_finds_a_file_only_where_one_fits(tmp_path: Path) -> None:
    for number, name in enumerate(("A.png", "a.png", "B.PNG", "other/C.png")):
        picture(tmp_path / "in", name, number)
    lines = ["1;a.png", "2;b.png", "3;c.png"]
    (tmp_path / "in" / "t.csv").write_text("MRN;File\n" + "\n".join(lines) + "\n")
    assert main(["init", "--from-folder", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 3
    exams = pd.read_csv(tmp_path / "out" / "exams.csv")
    assert exams[["patient_id", "path"]].to_numpy().tolist() == [
        [1, "../in/a.png"], [2, "../in/B.PNG"], [3, "../in/other/C.png"],
    ]  # fmt: skip


def test_check_finds_the_known_defects_of_a_real_collection(tmp_path: Path, shared_data: Path) -> None:
    """Patients 210, 211 and 214 are positive on CT and negative on the radiograph; 97 and 178 share four pictures;
    where a picture was published tells its label."""
    words = ["--source", "covid-chestxray", "--data", str(shared_data / "covid_chestxray"), "--out", str(tmp_path)]
    assert main(["cohort", "import", *words]) == 0
    assert main(["cohort", "check", str(tmp_path)]) == 3
    found = pd.read_csv(tmp_path / "findings.csv", keep_default_na=False).set_index("check")
    decide = found[found["severity"] == "decide"]
    assert sorted(decide.index) == ["label covid19 from metadata", "label covid19 within pairs", "same picture"]
    pairs = decide.loc["label covid19 within pairs"]
    assert pairs["exams"] == 3
    assert all(f"xray_p{patient}_" in pairs["message"] for patient in (210, 211, 214))
    across = pd.read_csv(tmp_path / "duplicates.csv", dtype=str).query("same_patient == 'False'")
    assert set(map(frozenset, across[["patient_a", "patient_b"]].to_numpy())) == {frozenset(("97", "178"))}


def test_check_lists_the_patients_that_a_shipped_split_tears_apart(tmp_path: Path, shared_data: Path) -> None:
    packed = np.load(shared_data / "nih1000_cxr.npz")
    table = pd.DataFrame({"patient_id": packed["patient"], "part": packed["split"]})
    sides = table.groupby("patient_id")["part"].agg(set)
    torn = sorted(sides[sides.map(len) > 1].index)
    assert len(torn) > 10
    few = np.flatnonzero(np.isin(packed["patient"], [*torn[:8], *sorted(set(table["patient_id"]) - set(torn))[:4]]))
    rows = []
    for row in few:
        Image.fromarray(packed["images"][row]).save(tmp_path / packed["filename"][row])
        rows.append((packed["filename"][row], packed["patient"][row], "CXR", packed["filename"][row],
                     int(packed["label_abnormal"][row])))  # fmt: skip
    columns = ["exam_id", "patient_id", "modality", "path", "label:abnormal"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "exams.csv", index=False)
    shipped = table.drop_duplicates().assign(design="shipped", resample=0, fold=0, group_id=lambda f: f["patient_id"])
    shipped.replace({"part": {"valid": "val"}}).to_csv(tmp_path / "splits.csv", index=False)
    assert main(["cohort", "check", str(tmp_path)]) == 3
    message = pd.read_csv(tmp_path / "findings.csv").set_index("check").loc["splits.csv", "message"]
    assert message.startswith(f"{len(torn)} patients, or their files, on two sides of a fold: ")
    assert message.split(": ")[1].split(", ") == torn
