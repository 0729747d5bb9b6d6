"""The page of a scored folder: one HTML file with its pictures, the worst image first, regions drawn over them."""

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from scipy.stats import binomtest

from lib.evaluate.own_images import outlines
from lib.files import replacing, writing
from lib.metrics.setting import Setting
from lib.plots.rendering import fit, heat_layer
from lib.stores import LabelStore, PredictionStore

SIDE = 400  # pixels of a picture's longer side
HEAT_SIDE = 96  # pixels of the heat over it


def write_score_page(
    path, title: str, labels: LabelStore, predictions: PredictionStore, setting: Setting, images: pd.DataFrame,
    unread: pd.DataFrame, facts: str = "", pictures: int = 300,
) -> Path:  # fmt: skip
    """Write the page; returns its path. It fetches nothing and needs no other file.

    Args:
        path: beside the files of `lib.evaluate.own_images.scored`, whose outlines are read.
        images: as `scored` gives them; unread: as `lib.evaluate.own_images.unreadable` does.
        facts: a sentence on where the figures come from.
        pictures: so many of the worst images have their picture and outlines, about 25 kB each; the others are lines.
    """
    shown = images.index[:pictures]
    outlined = pd.concat(outlines(Path(path).parent, shown)).groupby("id", sort=False)

    def cards() -> Iterator[dict]:
        for row in images.itertuples():
            card = {"path": row.path, "prompt": row.prompt, "width": row.width, "height": row.height}
            card |= {"mos": round(row.mos, 3), "area": round(row.area, 5), "peak": row.peak, "n": row.n_regions}
            if row.Index in shown:
                drawn = outlined.get_group(row.Index).itertuples() if row.n_regions else ()
                card["regions"] = [_region(one, row) for one in drawn]
                card |= _pictures(labels, predictions, row.Index)
            yield card

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "static"), autoescape=True)
    rendered = environment.get_template("scores.html").stream(
        title=title, verdict=broken_in_words(images), facts=f"{facts} Regions: {setting}.", cards=cards(),
        pictures=len(shown), total=len(images), unread=list(unread["detail"]),
    )  # fmt: skip
    with writing(path, "give an OUT with write access and free space"), replacing(path) as part:
        rendered.dump(str(part), encoding="utf-8")
    return Path(path)


def broken_in_words(images: pd.DataFrame) -> str:
    """How many images have a region, with Wilson's 95 % interval, and the mean score."""
    broken, total = int((images["n_regions"] > 0).sum()), len(images)
    low, high = binomtest(broken, total).proportion_ci(method="wilson")
    return (
        f"{broken:,} of {total:,} images have a distorted region: {broken / total:.0%} (95% interval {low:.0%} to "
        f"{high:.0%}). Mean MOS {images['mos'].mean():.2f}."
    )


def _region(region, image) -> dict:
    """A region as the page draws it: its outline in thousandths of the sides, its box in pixels."""
    points = cv2.approxPolyDP(region.points.reshape(-1, 1, 2), 0.006 * max(image.width, image.height), True)[:, 0]
    points = np.round(1000 * points / [image.width, image.height]).astype(int)
    box = [round(value, 1) for value in (region.x, region.y, region.width, region.height)]
    return {"points": points.ravel().tolist(), "box": box, "area": round(region.area, 5), "peak": region.peak}


def _pictures(labels: LabelStore, predictions: PredictionStore, id: str) -> dict:
    """Base64 of the image as JPEG and of its heat as PNG with transparency."""
    small, heatmap = cv2.cvtColor(fit(labels.image(id), SIDE), cv2.COLOR_RGB2BGR), predictions.heatmap(id)
    scale = min(1, HEAT_SIDE / max(heatmap.shape))
    heat = heat_layer(cv2.resize(heatmap, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    encoded = {
        "picture": cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 78])[1],
        "heat": cv2.imencode(".png", cv2.cvtColor(heat, cv2.COLOR_RGBA2BGRA))[1],
    }
    return {name: b64encode(data.tobytes()).decode("ascii") for name, data in encoded.items()}
