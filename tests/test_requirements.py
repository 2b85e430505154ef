"""requirements/lock.txt against the requirement files and against what the installed packages ask for."""

from importlib.metadata import distribution, version

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILES = ["common", "quickstart", "scale", "dev"]
WITHOUT_DEPENDENCIES = {line.split("==")[0] for line in (ROOT / "requirements/quickstart.txt").read_text().splitlines()}


def requirements(path):
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


@pytest.fixture(scope="module")
def lock():
    return {canonicalize_name(row.name): str(row.specifier)[2:] for row in requirements(ROOT / "requirements/lock.txt")}


@pytest.mark.parametrize("path", [ROOT / "requirements.txt", *(ROOT / f"requirements/{name}.txt" for name in FILES)])
def test_every_requirement_is_locked_at_a_version_that_it_admits(path, lock):
    found = requirements(path)
    assert found
    assert [str(row) for row in found if not row.specifier.contains(lock[canonicalize_name(row.name)])] == []


def test_the_locked_packages_get_what_they_ask_for(lock):
    faults = []
    for name in lock:
        if name in map(canonicalize_name, WITHOUT_DEPENDENCIES):
            continue
        for text in distribution(name).requires or ():
            row = Requirement(text)
            if row.marker and not row.marker.evaluate({"extra": ""}):
                continue
            locked = lock.get(canonicalize_name(row.name))
            if canonicalize_name(row.name) not in ("setuptools", "pip") and (
                locked is None or not row.specifier.contains(locked, prereleases=True)
            ):
                faults.append(f"{name} asks for {text}; locked: {locked}")
    assert faults == []


def test_what_is_installed_is_what_is_locked(lock):
    assert {name: version(name).partition("+")[0] for name in lock} == lock
