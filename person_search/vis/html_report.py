# SPDX-License-Identifier: Apache-2.0
"""A search as one HTML file without scripts or further files; responsive, with a dark mode.

Boxes are XYXY in pixels of their scene.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from person_search.vis.drawing import crop_person, draw_box, fitted_size, to_image
from person_search.vis.search_sheet import STATUS_COLORS

SCENE_SIZE = (720, 540)
CROP_SIZE = (160, 280)
QUALITY = 82

_STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --text: #1b1f24;
  --quiet: #57606a; --line: #d0d7de; --query: #0b57d0; --bar: #1a7f64; }
@media (prefers-color-scheme: dark) { :root { --ground: #0f1318; --card: #1a2028; --text: #e8ecf0;
  --quiet: #9aa5b1; --line: #323b45; --query: #8ab4f8; --bar: #4fc3a1; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, header { max-width: 1200px; margin: 0 auto; padding: 0 16px; }
h1 { font-size: 1.5rem; margin: 24px 0 4px; } h2 { font-size: 1.15rem; margin: 28px 0 12px; }
p { margin: 4px 0; max-width: 75ch; } .quiet { color: var(--quiet); }
ol, ul { list-style: none; margin: 0; padding: 0; display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  display: flex; flex-direction: column; }
li.query { border: 2px solid var(--query); }
.title { display: flex; gap: 10px; align-items: baseline; padding: 10px 12px 6px; margin: 0;
  font-weight: 600; font-size: 1rem; }
.title span { margin-left: auto; font-variant-numeric: tabular-nums; }
.bar { height: 4px; margin: 0 12px 10px; background: var(--line); border-radius: 2px; }
.bar i { display: block; height: 100%; background: var(--bar); border-radius: 2px; }
.images { display: flex; align-items: stretch; gap: 2px; background: var(--line); height: 220px; }
.images img { display: block; min-width: 0; height: 100%; object-fit: contain;
  background: var(--ground); }
.scene { flex: 1 1 70%; } .crop { flex: 0 0 27%; max-width: 27%; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 12px; margin: 10px 12px 12px;
  font-size: .875rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin: 28px 0; font-size: .875rem; color: var(--quiet); }
@media print { li { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class ReportCell:
    """One scene with one person.

    Attributes:
        image: (H, W, 3) uint8 RGB; None if the file is no longer readable.
        box: Box of the person.
        title: Title, for example the rank.
        alt: Text alternative of the image.
        facts: (name, value) pairs below the scene.
        sim: Cosine similarity; None for a query.
    """

    image: np.ndarray | None
    box: Sequence[float]
    title: str
    alt: str
    facts: Sequence[tuple[str, str]] = ()
    sim: float | None = None


def html_report(
    queries: Iterable[ReportCell],
    results: Iterable[ReportCell],
    *,
    title: str,
    summary: str,
    footer: str = "",
) -> str:
    """Returns the HTML document.

    Args:
        queries: Images of the person to search for.
        results: Results, best first; may be empty. They are consumed one by one, so that their
            scenes need not all be in memory.
        title: Title of the document, plain text.
        summary: Sentence below the title, plain text.
        footer: Last line, plain text.
    """
    found = "".join(_card(cell, "match") for cell in results)
    heading = "Most similar first" if found else "No person was found."
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1>\n<p>{html.escape(summary)}</p></header>\n<main>\n"
        f"<h2>Searched for</h2>\n<ul>{''.join(_card(cell, 'query') for cell in queries)}</ul>\n"
        f"<h2>{heading}</h2>\n<ol>{found}</ol>\n"
        f"<footer>{html.escape(footer)}</footer>\n</main>\n</body>\n</html>\n"
    )


def _card(cell: ReportCell, kind: str) -> str:
    sim = ""
    if cell.sim is not None:
        width = round(100 * min(max(cell.sim, 0.0), 1.0))
        sim = f'<div class="bar" aria-hidden="true"><i style="width:{width}%"></i></div>'
    number = "" if cell.sim is None else f"<span>similarity {cell.sim:.3f}</span>"
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in cell.facts
    )
    return (
        f'<li class="{kind}"><h3 class="title">{html.escape(cell.title)}{number}</h3>{sim}'
        f"{_images(cell, kind)}<dl>{facts}</dl></li>\n"
    )


def _images(cell: ReportCell, kind: str) -> str:
    if cell.image is None:
        return '<p class="title quiet">The image is no longer readable.</p>'
    image = to_image(cell.image)
    size = fitted_size(image.size, SCENE_SIZE)
    scene = image.resize(size, Image.Resampling.LANCZOS)  # small ones too, for the box
    x1, y1, x2, y2 = np.asarray(cell.box, float) * np.array(size * 2) / (image.size * 2)
    color = STATUS_COLORS["query" if kind == "query" else "unknown"]
    # thick: the browser shows the scene at less than half this size
    draw_box(scene, (x1 - 8, y1 - 8, x2 + 8, y2 + 8), color, width=7, rim=3)
    crop = crop_person(image, cell.box)
    crop.thumbnail(CROP_SIZE, Image.Resampling.LANCZOS)
    alt = html.escape(cell.alt)
    return (
        f'<div class="images"><img class="scene" loading="lazy" alt="{alt}" src="{_uri(scene)}">'
        f'<img class="crop" loading="lazy" alt="The same person, enlarged" src="{_uri(crop)}">'
        "</div>"
    )


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
