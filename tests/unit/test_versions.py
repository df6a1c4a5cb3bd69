"""The version stands in pyproject.toml; whatever else has to say it says the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("field", ["version", "appVersion"])
def test_the_chart_has_it(field: str) -> None:
    assert yaml.safe_load((ROOT / "charts" / "expunge" / "Chart.yaml").read_text())[field] == VERSION


def test_the_citation_has_it() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == VERSION


@pytest.mark.parametrize("image", ["jobs", "controller"])
def test_the_images_have_it(image: str) -> None:
    assert f"\nARG VERSION={VERSION}\n" in (ROOT / "docker" / f"{image}.Dockerfile").read_text()


def test_commands_that_name_an_image_name_today_s() -> None:
    found = set()
    for file in [ROOT / "README.md", *(ROOT / "docker").glob("*"), *(ROOT / "controller").rglob("*.py")]:
        found |= set(re.findall(r"registry/expunge-(?:jobs|controller):([0-9.]+)", file.read_text()))
    assert found == {VERSION}
