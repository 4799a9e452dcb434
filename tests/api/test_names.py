"""The front door: its names, what importing it loads, and that documentation and README say what the code does."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import embedprior

ROOT = Path(__file__).parents[2]
PUBLIC = [name for name in embedprior.__all__ if name != "__version__"]
GUESSED = {
    "create_encoder", "list_encoders", "embed", "open_cache", "read_volume", "read_radiograph", "render_drr",
    "DiffusionPrior", "load_fitted", "delong_test", "evaluate", "run_study",
}  # fmt: skip
"""What a user would type without reading anything."""


def loaded_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after the code."""
    code += "; import sys; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_names_that_a_user_would_guess_are_there() -> None:
    assert set(dir(embedprior)) >= GUESSED
    for name in PUBLIC:
        assert getattr(embedprior, name).__name__ == name


def test_importing_the_package_loads_none_of_the_heavy_libraries() -> None:
    for code in ("import embedprior", "import embedprior; dir(embedprior); embedprior.__version__"):
        loaded = loaded_after(code)
        assert "embedprior" in loaded
        assert loaded.isdisjoint({"torch", "numpy", "pandas", "scipy", "pydantic", "matplotlib"})
    assert "pandas" in loaded_after("import embedprior; embedprior.delong_test")
    assert "torch" not in loaded_after("import embedprior; embedprior.delong_test")


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'delong_tests'.*Did you mean 'delong_test'\?"):
        embedprior.delong_tests  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name"):
        from embedprior import difusion_prior  # noqa: F401


def test_type_checkers_see_the_names_where_they_are() -> None:
    stub = ast.parse((ROOT / "embedprior" / "__init__.pyi").read_text(encoding="utf-8"))
    homes = {
        alias.asname: f"{node.module}:{alias.name}"
        for node in ast.walk(stub)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == {name: f"{getattr(embedprior, name).__module__}:{name}" for name in PUBLIC}


def public_definitions() -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name in PUBLIC:
        thing = getattr(embedprior, name)
        found.append((name, thing))
        if inspect.isclass(thing):
            found += [
                (f"{name}.{own}", member)
                for own, member in vars(thing).items()
                if not own.startswith("_")
                and (inspect.isfunction(member) or isinstance(member, (property, classmethod)))
            ]
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_or_names_the_one_that_shows_it(name: str) -> None:
    text = inspect.getdoc(getattr(embedprior, name)) or ""
    other = re.search(r"Example: see ``(\w+)``", text)
    shown = text if other is None else inspect.getdoc(getattr(embedprior, other[1])) or ""
    examples = doctest.DocTestParser().get_examples(shown)
    assert len(examples) >= 2, f"{name} has no example"
    assert any(one.want for one in examples), f"the example of {name} shows no result"


def test_every_public_method_is_described_with_its_arguments() -> None:
    for name, thing in public_definitions():
        text = inspect.getdoc(thing) or ""
        assert len(text) > 20, name
        function = getattr(thing, "__func__", thing)
        if inspect.isfunction(function):
            for parameter in inspect.signature(function).parameters:
                own = parameter.removesuffix("_a").removesuffix("_b")
                assert own in ("self", "cls") or own in text, f"{name} does not describe '{parameter}'"


def test_the_python_page_is_what_the_docstrings_say() -> None:
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == tool("api_page").page(), (
        "docs/api.md is out of date. Next: python tools/api_page.py"
    )


def test_the_first_snippet_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert snippet is not None
    done = subprocess.run(
        [sys.executable, "-c", snippet[1]], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    aucs = [float(found) for found in re.findall(r"AUC [ab]: (0\.\d+) \(95 % CI 0\.\d+ to 0\.\d+\)", done.stdout)]
    # the same patients; the label depends on ct[:, 0] alone, so its posterior mean, in closed form, ranks best
    rng = np.random.default_rng(0)
    ct = rng.normal(size=(1200, 8))
    mixing = rng.normal(size=(8, 16))
    cxr = ct @ mixing + 2 * rng.normal(size=(1200, 16))
    label = rng.random(1200) < 1 / (1 + np.exp(-2 * ct[:, 0]))
    best = (cxr @ mixing.T / 4 @ np.linalg.inv(np.eye(8) + mixing @ mixing.T / 4))[:, 0]
    assert len(aucs) == 2
    assert aucs[1] + 0.03 < aucs[0] < roc_auc_score(label[800:], best[800:]) + 0.005
    assert re.search(r"difference a - b: 0\.\d+ .*\nDeLong, t: p < 0\.001", done.stdout)
