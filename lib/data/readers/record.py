"""What every reader gives, `Record`, and how it parses numbers, points and regions on the way."""

import math
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from lib.data.regions import Problem, Region, RegionError
from lib.errors import InputError

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
shorten = _short.repr  # a value as it may stand in a message


class NoSplitError(InputError):
    """The raw data have no such split."""


@dataclass
class Record:
    """One entry while and after it is read. Unless told otherwise one annotator looked, and his regions are the truth.

    `regions` are parsed but not yet drawn; `annotator` in them is 0..n_annotators-1.
    """

    id: str
    image: Path | bytes | None  # bytes of an encoded image become a file; None: the entry cannot be used
    labelled: bool = True  # whether somebody looked for damage; without regions the image is then sound
    prompt: str = ""
    mos: float | None = None
    n_annotators: int = 1
    size: tuple[int, int] | None = None  # (width, height) that the regions refer to; None: the image's own
    heatmap: np.ndarray | None = None  # uint8 [h, w] in place of regions, stretched to the image
    consensus: bool = True  # of one annotator: what he marked is the truth (255), not one opinion of several (64)
    attributes: dict = field(default_factory=dict)  # further columns of the manifest: text or numbers
    regions: list[Region] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, where: str, parse: Callable[..., Region], *arguments) -> None:
        """Keep the region `parse(*arguments)`; its error becomes a problem that says `where`.

        What is no RegionError comes from the decoder of a mask.
        """
        try:
            self.regions.append(parse(*arguments))
        except RegionError as error:
            self.report(error.problem, f"{where}: {error}")
        except (ValueError, TypeError, OverflowError, cv2.error) as error:
            self.report("region malformed", f"{where}: its mask cannot be read: {str(error).splitlines()[0]}")

    def report(self, problem: str, detail: str) -> None:
        self.problems.append(Problem(self.id, problem, detail))


def unusable(id: str, problem: str, detail: str) -> Record:
    """A record that cannot be used, and why."""
    return Record(id, None, problems=[Problem(id, problem, detail)])


def finite_number(value) -> float | None:
    """The value as float if it is a finite JSON number, else None (text, booleans, NaN, infinity, null)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e308:
        return None
    return float(value)


def numbers(raw, count: int | None = None) -> list[float]:
    """A list of finite numbers, `count` of them; raises RegionError for everything else."""
    values = [finite_number(value) for value in raw] if isinstance(raw, list | tuple) else [None]
    if None in values or (count is not None and len(values) != count):
        wanted = "a list of numbers" if count is None else f"{count} numbers"
        raise RegionError("region malformed", f"{shorten(raw)} is not {wanted}")
    return values


def box(corners, annotator: int = 0) -> Region:
    """A rectangle from [x0, y0, x1, y1] in edge coordinates, its corners in any order."""
    return Region(annotator, "rectangle", np.reshape(numbers(corners, 4), (2, 2)))


def polygon(points, annotator: int = 0, shape: str = "edge polygon") -> Region:
    """A polygon from [x0, y0, x1, y1, ...] or [[x0, y0], ...]; see `Region` for the two shapes."""
    if isinstance(points, list) and all(isinstance(point, list | tuple) for point in points):
        flat = [value for point in points for value in numbers(point, 2)]
    else:
        flat = numbers(points)
    if len(flat) % 2:
        raise RegionError("region malformed", f"a polygon of {len(flat)} numbers, which are no pairs of x and y")
    if len(flat) < 6:
        raise RegionError("region degenerate", f"a polygon has 3 points or more, this one {len(flat) // 2}")
    return Region(annotator, shape, np.reshape(flat, (-1, 2)))


def turned_box(x: float, y: float, width: float, height: float, degrees: float, pivot, annotator: int = 0) -> Region:
    """A rectangle turned clockwise about `pivot` (x, y), in edge coordinates."""
    if not degrees:
        return box([x, y, x + width, y + height], annotator)
    corners = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
    return Region(annotator, "edge polygon", _turned(corners, degrees, pivot))


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0, annotator: int = 0) -> Region:
    """An ellipse about (x, y) with half axes, turned clockwise, as a polygon of 72 corners."""
    if rx <= 0 or ry <= 0:
        raise RegionError("region degenerate", f"an ellipse with half axes of {rx:g} and {ry:g}")
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    points = np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)
    return Region(annotator, "edge polygon", _turned(points, degrees, (x, y)))


def _turned(points: np.ndarray, degrees: float, pivot) -> np.ndarray:
    turn = math.radians(degrees)
    return (points - pivot) @ [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]] + pivot


def bitmap(mask: np.ndarray, left: int, top: int, size: tuple[int, int] | None) -> Region:
    """A mask [h, w] that lies at (left, top) of an image of `size` (width, height); cut at the border."""
    if size is None:
        raise RegionError("region malformed", "a mask, of which the file does not say how large the image is")
    canvas = np.zeros(size[::-1], dtype=bool)
    rows, columns = (np.arange(side) + start for side, start in zip(mask.shape, (top, left), strict=True))
    rows, columns = (places[(places >= 0) & (places < side)] for places, side in ((rows, size[1]), (columns, size[0])))
    canvas[np.ix_(rows, columns)] = mask[np.ix_(rows - top, columns - left)]
    return Region.of_mask(0, canvas)


def joined(names: Iterable) -> str:
    """Names as a column of the manifest holds several: each once, sorted, with + between them."""
    return "+".join(sorted({str(name) for name in names if name}))


def size_of(width, height) -> tuple[int, int] | None:
    """(width, height) from what a file tells, else None."""
    sides = finite_number(width), finite_number(height)
    return None if None in sides or min(sides) < 1 or max(sides) > 1e6 else (int(sides[0]), int(sides[1]))
