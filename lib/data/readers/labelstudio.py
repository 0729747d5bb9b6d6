"""Label Studio's JSON export: tasks with the annotations of several people, in percent of the image; brushes as RLE.

Annotators are told apart by `completed_by`. A task without annotations, or with skipped ones only, is not annotated;
one with an empty result is sound. `predictions` are a model's and no labels. A rating of 1..5 is the vote of its
annotator. Source: `label_studio_sdk/converter/` of HumanSignal/label-studio-sdk.
"""

import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from lib.data.readers.files import Images, find_file, images_folder, match, read_json
from lib.data.readers.record import (
    Record,
    ellipse,
    finite_number,
    joined,
    numbers,
    polygon,
    shorten,
    size_of,
    turned_box,
)
from lib.data.regions import Problem, Region, RegionError
from lib.data.rle import decode_brush
from lib.errors import InputError

NO_REGION = ("rating", "choices", "number", "textarea", "taxonomy", "datetime", "pairwise", "ranker", "labels")
PROMPTS = ("prompt", "caption", "text")  # fields of `data`, the first that is there


def read_labelstudio(data_root, split: str):
    """Returns and raises as readers do."""
    path = find_file(data_root, split, ".json")
    tasks = read_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks):
        raise InputError(f"{path} is no JSON export of Label Studio (JSON, not JSON_MIN): it needs a list of tasks")
    images = Images(images_folder(data_root, split))
    rated = any(_ratings(annotation) for task in tasks for annotation in _annotations(task))
    listed, problems = [], []
    for task in tasks:
        reference = task["data"].get("image") if isinstance(task["data"], dict) else None
        if isinstance(reference, str):
            listed.append((_file_name(reference, images), (task, rated)))
        else:
            problems.append(Problem("", "record malformed", f"task {task.get('id')} names no image in data.image"))
    return match(images, listed, _record, problems)


def _file_name(reference: str, images: Images) -> str:
    """The image that a task means: the end of an address, without the 8 hex digits that an upload puts before it."""
    path = unquote(reference.split("?d=")[-1])
    name = re.sub(r"^[0-9a-f]{8}-", "", path.replace("\\", "/").rsplit("/", 1)[-1])
    return path if images.find(path) else name


def _annotations(task: dict) -> list[dict]:
    found = task.get("annotations", task.get("completions"))  # of old exports
    return [one for one in found or [] if isinstance(one, dict)]


def _ratings(annotation: dict) -> list[float]:
    values = [result["value"] for result in _results(annotation) if result.get("type") == "rating"]
    return [rating for value in values if (rating := finite_number(value.get("rating"))) is not None]


def _results(annotation: dict) -> list[dict]:
    found = annotation.get("result")
    return [row for row in found or [] if isinstance(row, dict) and isinstance(row.get("value"), dict)]


def _record(id: str, image: Path, entry: tuple[dict, bool]) -> Record:
    (task, rated), record = entry, Record(id, image)
    people: dict[str, int] = {}
    votes, kinds, sizes = [], [], set()
    for annotation in _annotations(task):
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            record.report("annotation skipped", f"annotation {annotation.get('id')} was cancelled; it does not count")
            continue
        by = annotation.get("completed_by")
        by = str(by.get("id") if isinstance(by, dict) else by)
        if by in people:
            record.report("annotator twice", f"annotator {by} has several annotations; they are united")
        annotator = people.setdefault(by, len(people))
        votes += _ratings(annotation)
        for result in _results(annotation):
            if result.get("type") in NO_REGION:
                continue
            record.add(f"result {result.get('id')}", _region, result, annotator)
            named = result["value"].get(result.get("type")) or result["value"].get("labels")
            kinds += named if isinstance(named, list) else []
            sizes.add(size_of(result.get("original_width"), result.get("original_height")))
    votes = [vote for vote in votes if 1 <= vote <= 5]
    if rated and people and not votes:
        record.report("score missing", "nobody gave a rating of 1 to 5; only the heatmap is used")
    prompt = next((task["data"][name] for name in PROMPTS if name in task["data"]), None)
    if isinstance(prompt, str) and prompt:
        record.prompt = prompt
    elif prompt is not None:
        record.report("prompt missing", f"the prompt is {shorten(prompt)}; an empty prompt is used")
    record.labelled, record.n_annotators = bool(people), len(people)
    record.mos = float(np.mean(votes)) if votes else None
    record.size = sizes.pop() if len(sizes) == 1 else None
    record.attributes["kinds"] = joined(kinds)
    return record


def _region(result: dict, annotator: int) -> Region:
    kind, value = str(result.get("type")), result["value"]
    size = size_of(result.get("original_width"), result.get("original_height"))
    if size is None:
        raise RegionError("region malformed", "original_width and original_height are no numbers of pixels")
    if finite_number(result.get("image_rotation") or 0):
        raise RegionError("region malformed", f"the view was turned by {shorten(result['image_rotation'])} degrees")
    percent = np.array(size) / 100

    def pixels(*names: str) -> np.ndarray:
        return np.array(numbers([value.get(name) for name in names])) * np.resize(percent, len(names))

    degrees = finite_number(value.get("rotation") or 0)
    if kind.startswith("rectangle"):
        x, y, width, height = pixels("x", "y", "width", "height")
        return turned_box(x, y, width, height, degrees, (x, y), annotator)
    if kind.startswith("ellipse"):
        return ellipse(*pixels("x", "y", "radiusX", "radiusY"), degrees, annotator)
    if kind.startswith("polygon"):
        points = value.get("points") if isinstance(value.get("points"), list) else []
        return polygon([(np.array(numbers(point, 2)) * percent).tolist() for point in points], annotator)
    if kind.startswith("brush") and value.get("format") == "rle":
        return Region.of_mask(annotator, decode_brush(value.get("rle"), size[1], size[0]) > 0)
    raise RegionError("region type unknown", f"a result of type {shorten(kind)} has no area")
