from __future__ import annotations

import json
import subprocess
import sys

import pytest

from embedprior.cli import main
from embedprior.students.registry import METHODS

SIZES = ["--cxr-dim", "10", "--ct-dim", "6", "--hidden", "16", "--pairs", "30", "--preset", "tiny"]


def test_every_method_is_listed_with_source_inputs_parameters_and_marks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", *SIZES, "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)["methods"]}
    assert set(rows) == set(METHODS)
    assert all(r["source"] and r["inputs"] and r["trainable"] is not None for r in rows.values())
    # standardised input → 16 hidden → 1: 10·16 + 16 + 16 + 1; the teacher head reads 6 numbers
    student, head = 10 * 16 + 16 + 16 + 1, 6 * 16 + 16 + 16 + 1
    assert (rows["cxr-only"]["trainable"], rows["cxr-only"]["total"]) == (student, student)
    assert (rows["hinton-kd"]["trainable"], rows["hinton-kd"]["total"]) == (student, student + head)
    assert rows["fitnets"]["trainable"] == student + 16 * 6 + 6
    assert rows["ridge-head"]["trainable"] == 10 * 6 + 6
    assert rows["kernel-ridge-head"]["trainable"] == 30 * 6 + 6
    wide = 10 * 64 + 64 + 64 + 1
    assert rows["same-modality-kd"]["trainable"] == student + wide
    oracles = ["ct-only", "late-fusion", "slice-ct-only", "slice-late-fusion"]
    assert [n for n, r in rows.items() if r["needs_ct"]] == oracles
    assert rows["aft-kd"]["reconstruction"]
    assert not rows["proto-kd"]["reconstruction"]


def test_the_table_fits_a_terminal_and_sets_oracles_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", *SIZES]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert [n for n in names if n != "method"] == list(METHODS)
    oracles = lines.index(next(line for line in lines if line.startswith("oracles")))
    assert lines[oracles + 2].split()[0] == "ct-only"
    assert any("dkd, dist" in line for line in lines)


def test_one_method_in_full_says_what_was_reconstructed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "aft-kd"]) == 0
    assert "RECONSTRUCTION" in capsys.readouterr().out
    assert main(["methods", "prior-l2-bce"]) == 0
    assert "{'l2': 0.8, 'bce': 0.2}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hinton"], "Did you mean 'hinton-kd'"),
        (["dkd"], "it is 'hinton-kd'"),
        (["--cxr-dim", "0"], "'--cxr-dim': 0. Allowed: 1 or more"),
        (["--preset", "huge"], "prior-49m"),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", *words]) == 2
    assert message in capsys.readouterr().err


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom embedprior.cli import main\n"
        "for words in (['methods', '--help'], ['train', 'student', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit as e: assert not e.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--ct-cache" in done.stdout
