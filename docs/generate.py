"""Write the generated parts of docs/protocol.md and docs/peers.md anew: `python docs/generate.py`.

What stands between `<!-- generated: NAME -->` and `<!-- end -->` comes from the code: message definitions, error
table, settings, and the drawings of the layout modules. A test fails when a page is out of date.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from shmlog.protocol.reference import SECTIONS

PAGES = [Path(__file__).parent / name for name in ("protocol.md", "peers.md")]
_MARKED = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_DRAWINGS = {
    "batch": "shmlog.records.layout",
    "ring": "shmlog.ring.layout",
    "metadata": "node.core.cluster.image",
    "peers": "shmlog.protocol.peers",
}


def section(name: str) -> str:
    """One generated part."""
    if name in _DRAWINGS:
        text = importlib.import_module(_DRAWINGS[name]).__doc__ or ""
        return f"```text\n{text.strip()}\n```\n"
    return SECTIONS[name]()


def render(text: str) -> str:
    """`text` with every generated part made anew."""
    return _MARKED.sub(lambda m: f"{m[1]}\n{section(m[2])}\n{m[3]}", text)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    for page in PAGES:
        page.write_text(render(page.read_text()))
