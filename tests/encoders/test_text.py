"""Text encoders: equal to the libraries' own output, same spec and cache, and nothing of a report anywhere else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from embedprior.cache import open_cache
from embedprior.cli import main
from embedprior.encoders.base import encoder_key
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam

from .test_loaders import clip_folder, differing  # noqa: F401

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "no", "acute", "embolism", "large", "effusion", "zebra"]
REPORTS = ["no acute embolism", "large zebra effusion no no acute embolism effusion", "zebra"]


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A tiny BERT in a folder as the Hugging Face hub has them."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "tiny-bert"
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=12,
    )  # fmt: skip
    torch.manual_seed(1)
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    folder = tmp_path / "cohort"
    folder.mkdir()
    for i, text in enumerate(REPORTS):
        (folder / f"{i}.txt").write_text(text)
    (folder / "3.txt").write_bytes(b"zebra \xff\xfe")
    (folder / "4.txt").write_text(" \n")
    ids = [f"r{i}" for i in range(5)]
    pd.DataFrame(
        {"exam_id": ids, "patient_id": ids, "modality": "REPORT", "path": [f"{i}.txt" for i in range(5)]}
    ).to_csv(folder / "exams.csv", index=False)
    return folder


@pytest.mark.parametrize("pool", ["class token", "mean"])
def test_a_hugging_face_folder_gives_the_model_s_own_output(bert: Path, reports: Path, pool: str) -> None:
    transformers = pytest.importorskip("transformers")
    encoder = create_encoder(f"hf-text:{bert}", pool=pool)
    assert (encoder.spec.modality, encoder.spec.dim, encoder.spec.name) == ("REPORT", 16, "hf-text-tiny-bert")
    batch = np.stack([encoder.read(reports, f"{i}.txt") for i in range(3)])
    found = encoder.embed(batch)
    model = transformers.BertModel.from_pretrained(bert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    for row, text in zip(found, REPORTS, strict=True):  # one by one: without padding
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        np.testing.assert_allclose(row, states[0] if pool == "class token" else states.mean(0), atol=1e-5)
    other = create_encoder(f"hf-text:{bert}", pool="mean" if pool == "class token" else "class token")
    assert encoder_key(other.spec) != encoder_key(encoder.spec)


def test_another_configuration_with_the_same_weights_is_another_encoder(bert: Path) -> None:
    before = create_encoder(f"hf-text:{bert}")
    said = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(dict(reversed(said.items())), indent=1))  # other bytes
    assert differing(create_encoder(f"hf-text:{bert}"), before) == ""
    (bert / "config.json").write_text(json.dumps(said | {"layer_norm_eps": 0.1}))
    assert differing(create_encoder(f"hf-text:{bert}"), before) == "profile.configuration"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95", b"{", b'{"model": 3}'])
def test_a_damaged_file_of_a_hugging_face_folder_is_refused_by_its_name(bert: Path, name: str, content: bytes) -> None:
    (bert / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"tiny-bert.*{re.escape(name)}|{re.escape(name)}.*tiny-bert"):
        create_encoder(f"hf-text:{bert}")


def test_reports_go_into_a_cache_and_nothing_of_their_text_is_written(
    bert: Path, reports: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = reports.parent / "caches"
    code = main(["embed", "--cohort", str(reports / "exams.csv"), "--encoder", f"hf-text:{bert}", "--out", str(out)])
    assert code == 3
    cache = open_cache(out)
    assert cache.ids == ["r0", "r1", "r2"]
    reasons = pd.read_csv(out / "failures.csv").set_index("exam_id")["reason"]
    assert reasons["r3"] == "not UTF-8 text, and this encoder reads reports"
    assert reasons["r4"] == "no text in it, and this encoder reads reports"
    said = capfd.readouterr()
    written = b"".join(file.read_bytes() for file in out.rglob("*") if file.is_file())
    for text in (written, (said.out + said.err).encode()):
        assert b"zebra" not in text
        assert b"embolism" not in text


def test_bad_text_encoders_are_refused(bert: Path, reports: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"pool 'men'. Allowed: class token, mean. Did you mean 'mean'"):
        create_encoder(f"hf-text:{bert}", pool="men")
    with pytest.raises(BadInput, match=r"no config\.json there"):
        create_encoder(f"hf-text:{tmp_path}")
    with pytest.raises(UnreadableExam, match=r"^9.txt: No such file"):
        create_encoder(f"hf-text:{bert}").read(reports, "9.txt")
    (bert / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"no model\.safetensors there"):
        create_encoder(f"hf-text:{bert}")


def test_the_text_tower_of_a_clip_model_gives_the_model_s_own_output(clip_folder: Path, reports: Path) -> None:  # noqa: F811
    clip = pytest.importorskip("open_clip")
    encoder = create_encoder(f"open_clip-text:local-dir:{clip_folder}")
    assert (encoder.spec.name, encoder.spec.modality, encoder.spec.dim) == ("open_clip-text-tiny-clip", "REPORT", 12)
    theirs, _ = clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    tokens = clip.get_tokenizer(f"local-dir:{clip_folder}")(REPORTS)
    with torch.inference_mode():
        expected = theirs.eval().encode_text(tokens).numpy()
    found = encoder.embed(np.stack([encoder.read(reports, f"{i}.txt") for i in range(3)]))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    picture = create_encoder(f"open_clip:local-dir:{clip_folder}")
    assert picture.spec.weights_sha256 == encoder.spec.weights_sha256
    assert picture.spec.modality == "image"


def test_a_clip_model_with_a_bert_as_its_text_tower_is_read_from_local_folders(
    bert: Path, reports: Path, tmp_path: Path
) -> None:
    """As BiomedCLIP is built: a BERT of the Hugging Face hub, a projection, and the tokenizer's files in the folder."""
    clip = pytest.importorskip("open_clip")
    folder = tmp_path / "bio-clip"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert / name, folder / name)
    text = {
        "hf_model_name": str(bert), "hf_tokenizer_name": "bert", "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler", "hf_model_pretrained": False,
            "context_length": 12}  # fmt: skip
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    config = {"model_cfg": {"embed_dim": 6, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(2)
    model = clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    encoder = create_encoder(f"open_clip-text:local-dir:{folder}")
    tokens = clip.get_tokenizer(f"local-dir:{folder}")(REPORTS)
    with torch.inference_mode():
        expected = model.encode_text(tokens).numpy()
    found = encoder.embed(np.stack([encoder.read(reports, f"{i}.txt") for i in range(3)]))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert encoder.spec.dim == 6
