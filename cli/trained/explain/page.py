"""A page of HTML with the tokens of texts, coloured by their attributions."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from cli.trained.explain.picture import colour, signed, visible
from cli.trained.explain.report import title

_STYLE = """
body { font: 15px/1.7 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }
p { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
h2 { font-size: 1em; margin: 1.6em 0 0.2em; }
span { border-radius: 3px; padding: 1px 0; color: #111; }
"""


def page(heading: str, found: Mapping[str, Any]) -> str:
    """Return the page; the pointer on a token shows its attribution."""
    both = signed(found)
    key = "Red tokens raise the score, blue tokens lower it." if both else "Red tokens matter."
    texts = "\n".join(_sample(sample, both) for sample in found["samples"])
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(heading)}</title>'
        f"<style>{_STYLE}</style>\n<h1>{html.escape(heading)}</h1>\n<div>{key}</div>\n{texts}\n</html>\n"
    )


def _sample(sample: Mapping[str, Any], both: bool) -> str:
    field = sample["fields"][0]
    most = max(map(abs, field["attributions"]))
    tokens = "".join(_token(*pair, most, both) for pair in zip(field["parts"], field["attributions"], strict=True))
    return f"<h2>sample {sample['sample']}: {html.escape(title(sample))}</h2>\n<p>{tokens}</p>"


def _token(part: str, value: float, most: float, both: bool) -> str:
    shade = "".join(f"{round(255 * channel):02x}" for channel in colour(value, most, both))
    return f'<span style="background:#{shade}" title="{value:+.3g}">{html.escape(visible(part))}</span>'
