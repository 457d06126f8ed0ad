"""The parity harness can fail: it notices wrong numbers, unread keys, broken indexes and unknown sections."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from tests.parity.cases import DATA, Case, Folders, dec2013_cases, golden_cases
from tests.parity.compare import comparing
from tests.parity.pending import PENDING_SECTIONS
from tests.parity.sections import SECTIONS
from tests.shared import python
from tests.tolerances import EXACT, LAYERS, Tolerance

FLT_MAX = np.finfo(np.float32).max
OK, FAILED, USAGE = 0, 1, 4


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A folder with one case of one ReLU layer."""
    entries = json.loads((DATA / "golden" / "index.json").read_text())["cases"]
    entry = next(e for e in entries if e["section"] == "layers" and e["layer_types"] == ["ReLU"])
    folder = tmp_path / "golden"
    (folder / "layers").mkdir(parents=True)
    for name in entry["files"]:
        shutil.copy(DATA / "golden" / "layers" / name, folder / "layers" / name)
    (folder / "index.json").write_text(json.dumps({"cases": [entry]}))
    return folder


def run(golden: Path, *args: str) -> CompletedProcess[str]:
    """The harness on that folder alone."""
    empty = golden.parent / "empty"
    empty.mkdir(exist_ok=True)
    folders = [f"--golden={golden}", f"--golden2013={empty}", f"--zoo={empty}"]
    return python("-m", "pytest", "-p", "no:cacheprovider", "tests/parity", *folders, *args, OMP_NUM_THREADS="1")


def change(golden: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the recorded numbers."""
    path = next(golden.rglob("*.TRAIN.npz"))
    arrays = dict(np.load(path))
    edit(arrays)
    np.savez_compressed(path, **arrays)


def spoil_gradient(arrays: dict[str, Any]) -> None:
    key = next(key for key in arrays if key.startswith("diff/"))
    arrays[key] = arrays[key] + np.float32(1e-3)


def add_key(arrays: dict[str, Any]) -> None:
    arrays["novelty/x"] = np.zeros(3, np.float32)


def drop_output(arrays: dict[str, Any]) -> None:
    key = next(key for key in arrays if key.startswith("out/"))
    arrays["out/nowhere"] = arrays.pop(key)


def test_true_numbers_pass(golden: Path) -> None:
    result = run(golden, "--section", "layers")
    assert result.returncode == OK, result.stdout
    assert "ReLU" in result.stdout


@pytest.mark.parametrize(
    ("edit", "said"),
    [(spoil_gradient, "times the tolerance"), (add_key, "novelty/x"), (drop_output, "out/nowhere: missing")],
)
def test_wrong_numbers_fail(golden: Path, edit: Callable[[dict[str, Any]], None], said: str) -> None:
    change(golden, edit)
    result = run(golden, "--section", "layers")
    assert result.returncode == FAILED
    assert said in result.stdout


@pytest.mark.parametrize("index", ["{", '{"cases": 3}', '{"cases": [{"section": "layers"}]}', '{"cases": ["x"]}'])
def test_broken_index_is_a_failed_case(golden: Path, index: str) -> None:
    (golden / "index.json").write_text(index)
    result = run(golden, "--section", "layers")
    assert result.returncode == FAILED, result.stdout
    assert "1 failed" in result.stdout


def test_missing_file_is_a_failed_case(golden: Path) -> None:
    next(golden.rglob("*.prototxt")).unlink()
    result = run(golden, "--section", "layers")
    assert result.returncode == FAILED
    assert "the index promises" in result.stdout


def test_unsupported_section_is_a_failed_case(golden: Path) -> None:
    index = json.loads((golden / "index.json").read_text())
    index["cases"][0]["section"] = "astrology"
    (golden / "index.json").write_text(json.dumps(index))
    result = run(golden, "--section", "index")
    assert result.returncode == FAILED
    assert "no section 'astrology'" in result.stdout


def test_unknown_section_and_folder_are_usage_errors(golden: Path) -> None:
    assert run(golden, "--section", "layers,palmistry").returncode == USAGE
    assert run(golden / "nowhere").returncode == USAGE


def test_pending_sections_exist() -> None:
    assert not PENDING_SECTIONS - set(SECTIONS)


def test_every_copied_case_has_a_section() -> None:
    folders = Folders(DATA / "golden", DATA / "golden2013", DATA / "nowhere")
    for section in ("layers", "rejects", "fillers", "weights", "upgrade"):
        assert len(golden_cases(folders, section)) > 10
    assert dec2013_cases(folders, "layer")
    assert not golden_cases(Folders(DATA / "x", DATA / "x", DATA / "x"), "layers")


# -- comparison --------------------------------------------------------------------------------------------


def passes(got: Any, want: Any, tolerance: Tolerance = LAYERS) -> bool:
    return tolerance.ratio(np.asarray(got, np.float32), np.asarray(want, np.float32)) <= 1


@pytest.mark.parametrize(
    ("got", "want", "fine"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.00001], [1.0, 2.0], True),
        ([1.0, 2.0001], [1.0, 2.0], False),
        ([np.nan, 1.0], [np.nan, 1.0], True),
        ([0.0, 1.0], [np.nan, 1.0], False),
        ([np.nan, 1.0], [0.0, 1.0], False),
        ([np.inf, 1.0], [-np.inf, 1.0], False),
        ([-FLT_MAX, 1.0], [-FLT_MAX, 1.0], True),
        ([-np.inf, 1.0], [-FLT_MAX, 1.0], False),
        ([-FLT_MAX, 1.1], [-FLT_MAX, 1.0], False),
        ([], [], True),
    ],
)
def test_tolerance(got: list[float], want: list[float], fine: bool) -> None:
    assert passes(got, want) is fine


def test_exact_allows_nothing_but_the_sign_of_zero() -> None:
    assert passes([0.0], [-0.0], EXACT)
    assert not passes([np.nextafter(np.float32(1), np.float32(2))], [1.0], EXACT)


def test_comparing_nothing_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match="nothing was compared"), comparing():
        pass


def compare_differing() -> None:
    with comparing() as compare:
        compare.array("shape", np.zeros((2, 1)), np.zeros((1, 2)))
        compare.array("absent", None, np.zeros(1))
        compare.array("values", np.array([1.0, 3.0]), np.array([1.0, 2.0]))
        compare.equal("outputs", ["a"], ["b"])


def test_comparison_names_every_difference() -> None:
    with pytest.raises(pytest.fail.Exception) as caught:
        compare_differing()
    text = str(caught.value)
    assert all(word in text for word in ("shape (2, 1)", "absent: missing", "[1] = 3, want 2", "outputs"))


def test_case_is_named_by_section_and_id() -> None:
    assert str(Case("layers", "relu", DATA)) == "layers/relu"
