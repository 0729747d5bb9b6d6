"""Corrected labels: what an image's label holds as regions, and the corrected ones as label sets to train on.

A region here is {"shape": "rectangle" or "polygon", "points": [[x, y], ...] in image pixels as in `lib.data.regions`,
"annotator": number}. One that a person drew in the inspector has no "annotator": in a label set it counts as drawn by
every annotator of its image, and where none looked at the image, as the truth.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.export import label_studio, write_coco, write_json
from lib.data.regions import region_area
from lib.errors import InputError
from lib.files import writing
from lib.scale import HEATMAP_LEVELS, mos_from_score
from lib.stores import LabelStore
from lib.widgets.verdicts import KINDS, REMEDY

REGION = ("x", "y", "width", "height", "area", "heat", "points")
LOCAL_FILES = "/data/local-files/?d=images/"  # where Label Studio's server looks for the folder `images`


def label_regions(drawn, id: str) -> list[dict]:
    """What annotators drew on one image; `drawn` are `LabelStore.regions` grouped by id."""
    if id not in drawn.indices:
        return []
    return [
        {"annotator": int(one.annotator), "shape": one.shape, "points": np.reshape(one.points, (-1, 2)).tolist()}
        for one in drawn.get_group(id).itertuples()
    ]


def export(labels: LabelStore, verdicts: dict[str, dict], folder) -> list[Path]:
    """Write the corrected images as label sets of three formats; returns the files written, maybe none.

    `verdicts` are `VerdictFile.rows`; images that the split no longer holds are left out. Prompts and scores are the
    labels' own. `<folder>/corrected` is a raw split in the challenge's format, which `lib.data.prepare.prepare(folder,
    ..., splits=("corrected",))` reads; `coco.json` and `label_studio.json` beside it describe the same images.
    Raises InputError when the folder cannot be written or an image is lost.
    """
    corrected = {id: row["regions"] for id, row in verdicts.items() if id in labels.table.index}
    corrected = {id: drawn for id, drawn in corrected.items() if drawn is not None}
    if not corrected:
        return []
    split, entries, images, regions = Path(folder) / "corrected", {}, [], []
    with writing(split, REMEDY):
        (split / "images").mkdir(parents=True, exist_ok=True)
        for id, drawn in corrected.items():
            known, source = labels.table.loc[id], labels.image_path(id)
            if not source.is_file():
                raise InputError(f"{source} does not exist; put it back or drop the correction of {id}")
            name, size = f"{id}{source.suffix}", {"width": int(known["width"]), "height": int(known["height"])}
            shutil.copyfile(source, split / "images" / name)
            mos = None if pd.isna(known["score"]) else round(float(mos_from_score(known["score"])), 6)
            entry = {"prompt_en": known["prompt"], "bbox_info": _by_annotator(labels, id, drawn)}
            entries[id] = entry if mos is None else entry | {"mos": mos}
            images.append({"id": id, "image": name, **size, "prompt": known["prompt"], "mos": mos})
            regions += [{"id": id, **_region(one, size["width"] * size["height"])} for one in drawn]
        images, regions = pd.DataFrame(images), pd.DataFrame(regions, columns=["id", *REGION])
        tasks = label_studio(images, regions, prefix=LOCAL_FILES, model="corrected")
        return [
            write_json(split / "corrected_info.json", entries),
            write_coco(split / "coco.json", images, [regions]),
            write_json(split / "label_studio.json", tasks),
        ]


def _by_annotator(labels: LabelStore, id: str, drawn: list[dict]) -> list[list[dict]]:
    """The challenge's `bbox_info` of an image: what each annotator drew.

    One person counts as one annotator where the label has one opinion, else as as many as make the truth.
    """
    annotators = int(labels.table.at[id, "n_annotators"])
    several = annotators > 1
    if not several:
        known = labels.heatmap(id).max() if labels.table.at[id, "labelled"] else 0
        annotators = 1 if known == HEATMAP_LEVELS[1] else len(HEATMAP_LEVELS) - 1
    by = [[] for _ in range(annotators)]
    for one in drawn:
        # A label that was prepared anew may have fewer annotators.
        for regions in [by[one["annotator"]]] if several and one.get("annotator", annotators) < annotators else by:
            regions.append({"bbox_type": KINDS[one["shape"]], "bbox": one["points"]})
    return by


def _region(drawn: dict, pixels: int) -> dict:
    """A region's row of the table that `lib.data.export` takes, in an image of so many pixels; its outline by edges."""
    points = np.asarray(drawn["points"], float)
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    # The vertices of polygons count from the centres of pixels.
    rectangle = drawn["shape"] == "rectangle"
    outline = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) if rectangle else points + 0.5
    x, y = outline.min(axis=0).tolist()
    area = region_area("polygon", outline) / pixels
    width, height = np.ptp(outline, axis=0).tolist()
    return {"x": x, "y": y, "width": width, "height": height, "area": area, "heat": 255, "points": outline.tolist()}
