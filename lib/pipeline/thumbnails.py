"""Small pictures of an executed notebook's figures: one for each of its sections."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 480, 400  # px at most, twice what the index shows: sharp on fine screens
KINDS = ("image/png", "image/jpeg")


@dataclass(frozen=True)
class Thumbnail:
    """The first figure of a notebook's section; `source` is a data address that needs no file."""

    heading: str
    source: str

    @property
    def anchor(self) -> str:
        """Where nbconvert's page has the section."""
        return self.heading.replace(" ", "-")


def thumbnails(notebook: Path) -> list[Thumbnail]:
    """The first figure below each heading, in order; none when the notebook was not executed."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (FileNotFoundError, ValueError):  # half a file is what an interruption may leave
        return []
    found, heading = {}, ""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            titles = [line for line in "".join(cell["source"]).splitlines() if line.startswith("#")]
            heading = titles[-1].lstrip("# ") if titles else heading
        for output in cell.get("outputs", []):
            encoded = next((output["data"][kind] for kind in KINDS if kind in output.get("data", {})), None)
            if encoded and heading not in found:
                found[heading] = Thumbnail(heading, _small("".join(encoded)))
    return list(found.values())


def _small(encoded: str) -> str:
    """A picture in base64 as a small WebP data address, which suits charts and photographs alike."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((WIDTH, HEIGHT))
        picture.save(buffer, format="webp", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
