"""Recipes: runs of the paper as short files, with its figures beside them.

A file has sections: `train` has settings of the run that are not the default; `models`, in place of it, the runs that
are taken together; `evaluate` the options of `vggc evaluate` for rows of the paper's tables; `expected` the paper's
top-1/top-5 errors of these rows, on the validation set of ILSVRC-2012 unless it says otherwise; `obtained` what was
got.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from caffe_compat.errors import VggcError

_FOLDER = Path(__file__).resolve().parent
SUFFIX = ".ini"
SECTIONS = ("train", "models", "evaluate", "expected", "obtained")


@dataclass(frozen=True)
class Recipe:
    """A recipe.

    Attributes:
        name: of the file.
        about: the comment at its head.
        settings: of `repro.training.settings.Settings`, those that are not the default; empty when nothing is trained.
        models: runs that are taken together.
        evaluate: row of a table -> options of `vggc evaluate`.
        expected: row -> the paper's figure, as text.
        obtained: row -> what was got, or "not run".
    """

    name: str
    about: str
    settings: Mapping[str, Any]
    models: tuple[str, ...]
    evaluate: Mapping[str, str]
    expected: Mapping[str, str]
    obtained: Mapping[str, str]


def recipe_names() -> tuple[str, ...]:
    """All recipes, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob(f"*{SUFFIX}")))


def find_recipe(name: str, *, must: bool = False) -> Recipe | None:
    """A recipe by its name, or by its file.

    Raises:
        VggcError: there is none and there must be one, or it cannot be read.
    """
    path = Path(name)
    if path.suffix == SUFFIX and path.is_file():
        return read_recipe(path)
    for known in recipe_names():
        if known.lower() == name.lower():
            return read_recipe(_FOLDER / f"{known}{SUFFIX}")
    if must:
        raise VggcError(f'no recipe called "{name}"', remedy=f"recipes: {', '.join(recipe_names())}")
    return None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        VggcError: it cannot be read, or states something that is no setting.
    """
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=("#",))
    try:
        text = path.read_text(encoding="utf-8")
        parser.read_string(text, str(path))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise VggcError(f"this is no recipe: {error}", where=str(path), remedy="see those in repro/recipes") from error
    lines = text.splitlines()
    head = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)]
    sections = {name: dict(parser[name]) if name in parser else {} for name in SECTIONS}
    if unknown := sorted(set(parser.sections()) - set(SECTIONS)):
        raise VggcError(f"unknown section {', '.join(unknown)}", where=str(path), remedy=f"use {', '.join(SECTIONS)}")
    settings = {key: _value(key, text, path) for key, text in sections["train"].items()}
    about = "\n".join(line.removeprefix("#").strip() for line in head)
    models = tuple(sections["models"].get("runs", "").split())
    return Recipe(path.stem, about, settings, models, *(sections[name] for name in SECTIONS[2:]))


def _value(name: str, text: str, path: Path) -> Any:
    """A setting from its text, by its type."""
    from repro.training.settings import Settings

    kinds = {field.name: str(field.type) for field in fields(Settings)}
    if name not in kinds:
        raise VggcError(f'"{name}" is no setting', where=str(path), remedy=f"settings: {', '.join(kinds)}")
    try:
        return _READERS[kinds[name]](text)
    except (KeyError, ValueError) as error:
        raise VggcError(f"{name} = {text}: not of type {kinds[name]}", where=str(path)) from error


_READERS: Mapping[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda text: {"yes": True, "no": False}[text],
    "tuple[int, ...]": lambda text: tuple(map(int, text.split("-"))),
}
