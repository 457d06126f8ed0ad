"""Recipes: every one can be read, resolved and planned, and says what to expect."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import prototxt
from caffe_compat.errors import VggcError
from repro.cli import run
from repro.evaluate_command import evaluate
from repro.recipes import Recipe, find_recipe, read_recipe, recipe_names
from repro.training.settings import Settings

NAMES = recipe_names()
TRAINED = [name for name in NAMES if not name.startswith("fusion")]
SMALL = ("--crop", "32", "--batch", "1", "--device", "cpu")
"""A step that is measured in no time."""


def recipe(name: str) -> Recipe:
    found = find_recipe(name, must=True)
    assert found
    return found


def test_the_paper_s_rows_are_there() -> None:
    staged = {f"{net}-{stage}" for net in "CDE" for stage in ("256", "384", "jitter")}
    assert set(NAMES) == {"A", "A-LRN", "B", "B-shallow", "digits", "fusion-2", "fusion-7", *staged}
    table3 = {name: recipe(name).expected["table 3"] for name in TRAINED if "table 3" in recipe(name).expected}
    assert len(table3) == 12
    assert (table3["A"], table3["C-jitter"], table3["E-jitter"]) == ("29.6/10.4", "27.3/8.8", "25.5/8.0")


@pytest.mark.parametrize("name", NAMES)
def test_what_it_says(name: str) -> None:
    found = recipe(name)
    assert found.about.splitlines()[0].endswith((".", "digits."))
    assert found.expected.keys() == found.obtained.keys()
    assert found.evaluate.keys() <= found.expected.keys()
    for options in found.evaluate.values():
        evaluate.make_context("evaluate", ["m.caffemodel", "--data", "d", *shlex.split(options)])
    for run_name in (found.settings.get("weights"), found.settings.get("init_from"), *found.models):
        assert run_name is None or run_name.removeprefix("runs/") in TRAINED
    if name != "digits":
        assert "arXiv:1409.1556" in found.about
        assert set(found.obtained.values()) == {"not run"}
        assert all(
            re.match(r"\d\d\.\d/\d+\.\d$|top-1 7 above|VOC-2007 |image ", text) for text in found.expected.values()
        )
    if found.settings:
        assert f"Command: vggc train {name} --data" in found.about
        assert prototxt.find(found.settings["net"])


@pytest.mark.parametrize("name", TRAINED)
def test_resolves_to_the_paper_s_settings(name: str) -> None:
    made = Settings(**{"data": "d", **recipe(name).settings})
    if name != "digits":
        assert (made.batch, made.momentum, made.weight_decay, made.max_epochs, made.drops) == (256, 0.9, 5e-4, 74, 3)
        assert made.rate == (0.001 if made.weights else 0.01)
        assert made.scale == {"384": (384,), "jitter": (256, 512)}.get(name.partition("-")[2], (256,))


@pytest.mark.parametrize("name", TRAINED)
def test_dry_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", name, "--data", "digits", "--dry-run", "--json", *SMALL]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["hours"] > 0
    assert plan["iterations"] == plan["settings"]["max_epochs"] * 1438
    assert plan["missing"] == [s for s in (plan["settings"]["weights"], plan["settings"]["init_from"]) if s]


def test_dry_run_as_text(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "digits", "--data", "digits", "--dry-run", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "net digits: 678,506 parameters, 9,980,416 multiply-accumulates" in text
    assert "batch 32 in 1 passes of 32, 0.00192 TFLOP each; 44.9 an epoch, 630 at most" in text
    assert re.search(r"measured: \S+ s an update, \S+ images/s; at most \S+ hours", text)
    assert not list(tmp_path.iterdir())


def test_plans_of_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "digits", "--data", "digits", "--dry-run", "--staged", "--json", *SMALL]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [plan["settings"]["scale"] for plan in plans] == [[37], [55], [37, 73]]


def test_a_fusion_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "fusion-2", "--data", "digits"]) == 1
    assert "trains nothing; it takes runs/D-jitter, runs/E-jitter together" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[train]\nspeed = 3\n", '"speed" is no setting'),
        ("[train]\nbatch = many\n", "batch = many: not of type int"),
        ("[train]\nflip = perhaps\n", "not of type bool"),
        ("[wishes]\na = b\n", "unknown section wishes"),
        ("batch = 3\n", "this is no recipe"),
    ],
)
def test_damaged_recipes(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "a.ini").write_text(text)
    with pytest.raises(VggcError, match=what):
        read_recipe(tmp_path / "a.ini")


def test_a_recipe_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "mine.ini").write_text("# Mine.\n[train]\nnet = digits\nscale = 40-48  # jitter\ncolour = no\n")
    found = find_recipe(str(tmp_path / "mine.ini"))
    assert found
    assert found.settings == {"net": "digits", "scale": (40, 48), "colour": False}
    assert found.about == "Mine."
