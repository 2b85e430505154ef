"""The documents say what is so: commands that parse, files that exist, the table that was made."""

import re
import subprocess

import pytest
from conftest import ROOT

DOCUMENTS = [
    "README.md",
    *(f"docs/{name}.md" for name in ("deviations", "data", "results", "reliability", "performance", "scale")),
]


def commands():
    """Every ``python SCRIPT ...`` and ``sh run_finetune.sh ...`` of the documents' code, flags in a list."""
    found = set()
    for name in DOCUMENTS:
        text = (ROOT / name).read_text().replace("\\\n", " ")
        for script, rest in re.findall(
            r"(?<!\w)(?:python|sh) ((?:-m quickstart\.)?[\w/]+(?:\.py|\.sh)?)((?: --?[\w.]+[= ]?[^`\s#]*)*)", text
        ):
            flags = re.findall(r"--(\w+)", rest)
            if script.endswith((".py", ".sh")) or script.startswith("-m quickstart"):
                found.add((script, *flags))
    return sorted(found)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_in_the_documents_have_flags_that_exist(command, run_script, tmp_path):
    script, *flags = command
    words = script.split() if script.startswith("-m") else [script]
    shown = run_script(*words, "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert [flag for flag in flags if not re.search(rf"--{flag}\b(?!_)", shown.stdout)] == []


def test_the_documents_have_commands():
    assert len(commands()) >= 12


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_named_files_exist(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / name).parent / target).exists(), target
    for target in re.findall(r"`((?:utils|tests|profiles|quickstart|docs)/[\w./]+\.\w+)`", text):
        assert (ROOT / target).exists(), target


def tree():
    """The files that README's tree names: a deeper line lies in the last folder above it."""
    text = (ROOT / "README.md").read_text()
    fenced = re.split(r"^```.*\n", text, flags=re.MULTILINE)[1::2]
    block = next(part for part in fenced if "\nutils/\n" in part)
    folders: list[str] = []
    for line in filter(str.strip, block.splitlines()):
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name]
        if not name.endswith("/"):
            yield "".join(folders)


def test_the_tree_in_the_readme_has_every_file_and_no_other():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = ("tests/", "benchmarks/results/")  # one line each
    files = [name for name in listed if not name.startswith(folders) and not name.endswith("__init__.py")]
    assert sorted(tree()) == sorted(name for name in files if (ROOT / name).exists())
