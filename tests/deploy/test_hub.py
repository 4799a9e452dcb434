"""Publishing a bundle and reading it back, with a stand-in for the hub; and the search for traces of patients."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import embedprior
from embedprior.cli import main
from embedprior.deploy import hub
from embedprior.deploy.bundle import build_bundle, verify
from embedprior.deploy.scan import identifying_terms, traces
from embedprior.errors import BadInput, EmbedpriorError

huggingface_hub = pytest.importorskip("huggingface_hub")


class LocalHub:
    """Keeps what is uploaded in a folder, and notes every call."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, []

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repo_id, private))

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.calls.append(("upload", repo_id, commit_message))
        shutil.copytree(folder_path, self.root / repo_id)

    def snapshot_download(self, repo_id: str, revision: str | None = None) -> str:
        if not (self.root / repo_id).is_dir():
            raise ConnectionError(f"no route to {repo_id}")
        return str(self.root / repo_id)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    found = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    return found


def words(study: Path, out: Path, *more: str) -> list[str]:
    return ["bundle", "--study", str(study / "out"), "--method", "logistic", "--out", str(out), *more]


def test_a_published_bundle_is_the_same_when_it_is_read_from_the_hub(
    study: Path, bundle: Path, local: LocalHub, capsys
) -> None:
    asked = []
    place = hub.push(bundle, "ward/nodule", study / "out", lambda q: asked.append(q) or True)
    assert place == "https://huggingface.co/ward/nodule"
    (question,) = asked
    assert "ward/nodule" in question
    assert "licence 'cc-by-4.0'" in question
    assert local.calls[0] == ("create", "ward/nodule", True)  # private, unless --public
    rows = np.random.default_rng(0).normal(size=(3, 1280)).astype(np.float32)
    here, there = embedprior.load_bundle(bundle), embedprior.load_bundle("hf:ward/nodule")
    assert there.bundle_id == here.bundle_id
    pd.testing.assert_frame_equal(here.predict(rows), there.predict(rows))
    config = local.root / "ward" / "nodule" / "config.json"
    config.write_text(config.read_text().replace("cxr", "ct"))
    with pytest.raises(BadInput, match=r"config.json (has|no longer)"):
        embedprior.load_bundle("hf:ward/nodule")


def test_nothing_is_sent_without_a_yes(study: Path, bundle: Path, local: LocalHub, capsys) -> None:
    assert hub.push(bundle, "ward/nodule", study / "out", lambda question: False) is None
    assert main(words(study, bundle, "--push", "ward/nodule")) == 2  # no terminal to ask at
    assert "Next: --yes" in capsys.readouterr().err
    assert local.calls == []
    assert main(words(study, bundle, "--push", "ward/nodule", "--yes", "--public")) == 0
    assert local.calls[0] == ("create", "ward/nodule", False)


def test_a_bundle_without_a_licence_is_not_published(study: Path, local: LocalHub, tmp_path: Path, capsys) -> None:
    assert main(words(study, tmp_path / "b", "--push", "ward/nodule", "--yes")) == 2
    assert "names no licence" in capsys.readouterr().err
    assert local.calls == []


def test_names_and_connections_that_do_not_work_are_told_apart(study: Path, bundle: Path, local: LocalHub) -> None:
    with pytest.raises(BadInput, match="names no bundle of the hub"):
        embedprior.load_bundle("hf:nodule")
    with pytest.raises(BadInput, match=r"can't be read from the hub \(ConnectionError: no route to a/b\)"):
        embedprior.load_bundle("hf:a/b")
    with pytest.raises(BadInput, match="names no repository"):
        hub.push(bundle, "nodule", study / "out", lambda question: True)
    shutil.copytree(bundle, local.root / "ward" / "nodule")  # the upload fails: it is there already
    with pytest.raises(EmbedpriorError, match="ward/nodule can't be written to"):
        hub.push(bundle, "ward/nodule", study / "out", lambda question: True)


def test_a_patient_in_any_file_keeps_a_bundle_from_being_made_or_published(
    study: Path, bundle: Path, local: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedprior.deploy import bundle as module

    monkeypatch.setattr(module, "model_card", lambda config, flow: "about DoeJane7\n")
    with pytest.raises(
        BadInput, match=r"would name somebody: README\.md: an id or a file name of the study"
    ) as refused:
        build_bundle(study / "out", "logistic", tmp_path / "b")
    assert "DoeJane" not in str(refused.value)
    assert not (tmp_path / "b").exists()


TRACED = {
    "json": ("a.json", json.dumps({"note": "DoeJane7 was here"}), "an id or a file name of the study"),
    "short id": ("a.json", json.dumps({"note": "x3"}), "an id or a file name of the study"),
    "list": ("a.json", json.dumps({"patients_seen": []}), "patient lists"),
    "uid": ("README.md", "1.2.840.113619.2.55.3.604688119.969", "a DICOM UID"),
    "path": ("a.json", json.dumps({"weights": "/home/doe/w.pth"}), "a path of this machine"),
    "mail": ("README.md", "ask jane.doe@hospital.org", "an e-mail address"),
}


@pytest.mark.parametrize("what", TRACED)
def test_every_kind_of_trace_is_found(study: Path, tmp_path: Path, what: str) -> None:
    name, content, found = TRACED[what]
    (tmp_path / name).write_text(content)
    terms = identifying_terms(study / "out")
    assert {"DoeJane7", "x3", "png/x3.png"} <= terms
    assert traces(tmp_path, terms) == [f"{name}: {found}"]


def test_traces_in_weights_are_found_and_numbers_are_not_taken_for_ids(tmp_path: Path) -> None:
    save_file({"w": np.zeros(2)}, tmp_path / "w.safetensors", {"note": "DoeJane7"})
    (tmp_path / "a.json").write_text(json.dumps({"auc": 0.123456789, "sha256": "ab123456cd", "patients": 17}))
    (tmp_path / "README.md").write_text("17 patients, 0.123456\n")
    assert traces(tmp_path, {"DoeJane7"}) == ["w.safetensors: an id or a file name of the study"]
    noise = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)
    noise[5000:5009] = np.frombuffer("Müller42".encode(), np.uint8)  # between numbers
    save_file({"w": noise}, tmp_path / "w.safetensors")
    assert traces(tmp_path, {"DoeJane7", "Müller42"}) == ["w.safetensors: an id or a file name of the study"]
    assert traces(tmp_path, {"DoeJane7", "Müller43"}) == []
    assert traces(tmp_path, {"123456", "17", "ab123456"}) == []


def test_no_bundle_of_these_tests_names_anybody(study: Path, bundle: Path) -> None:
    verify(bundle)
    assert traces(bundle, identifying_terms(study / "out")) == []
