"""The page itself: a template, a style sheet and a script, put together into one file."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined


def render(data: dict[str, Any], explorer: dict[str, Any]) -> str:
    """The whole page.

    Model output and passages are data: the template escapes them, the explorer's script puts them in as
    text, and the content security policy lets no script run but that one and no request leave the page.

    Args:
        data: the template's fields, see ``page.html``.
        explorer: what ``explorer.js`` reads.
    """
    files = resources.files(__package__)
    script, style = ((files / name).read_text(encoding="utf-8") for name in ("explorer.js", "page.css"))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src " + _hash(script)
    # "<" ends the script element if a passage holds "</script>"; its escape is the same character to JSON.
    embedded = orjson.dumps(explorer).decode().replace("<", "\\u003c")
    environment = Environment(
        loader=PackageLoader("utils.tables.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["data_uri"] = data_uri
    return environment.get_template("page.html").render(
        **data, policy=policy, script=script, style=style, explorer=embedded
    )


def data_uri(svg: str) -> str:
    """An image inside the page; a picture, unlike inline SVG, runs nothing and shares no ids."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
