"""Where raw data lie: a split's annotation file, its images, and the JSON in it."""

import json
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from lib.data.readers.record import NoSplitError, Record, shorten, unusable
from lib.data.regions import Problem
from lib.errors import InputError
from lib.files import what_it_is

EXTENSIONS = (  # in any case
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".jp2", ".tga",
    ".jpe", ".jfif", ".dib", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip

MISFITS = (TypeError, AttributeError, LookupError)  # what reading raises where a list is a number, and the like


def misfit(error: Exception) -> str:
    """What to say of one of MISFITS."""
    return f"it is not laid out as the format says ({type(error).__name__}: {error})"


def find_file(data_root, split: str, suffix: str) -> Path:
    """The annotation file of a split: the only one that ends in `suffix` in the first folder that has any.

    These are `<data_root>/<split>/`, then, of files with the split's name in their own, `<data_root>/annotations/` and
    `<data_root>`; of "train" any file of these two. Raises NoSplitError where there is none, InputError for several.
    """
    root, named = Path(data_root), f"*{split}*{suffix}"
    places = [(root / split, f"*{suffix}"), (root / "annotations", named), (root, named)]
    places += [(root, f"*{suffix}"), (root / "annotations", f"*{suffix}")] if split == "train" else []
    for folder, pattern in places:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:4])
            raise InputError(f"{folder} holds several files of annotations ({names}); leave one of them there")
        if found:
            return found[0]
    raise NoSplitError(
        f"{root} holds no {suffix} file of {split}; put it into {root / split}/, or name it with {split} in its name"
    )


def images_folder(data_root, split: str) -> Path:
    """Where a split's images lie: a folder of the split's name, else `images/`, else `data_root` itself."""
    root = Path(data_root)
    folders = [root / split / "images", root / split, *sorted((root / "images").glob(f"{split}*"))]
    folders += [*sorted(root.glob(f"{split}*")), root / "images"]
    return next((folder for folder in folders if folder.is_dir()), root)


def image_files(folder, leave_out=None) -> list[str]:
    """Paths of the images in a folder and its sub-folders, relative to it with `/`, sorted.

    Args:
        leave_out: a folder inside that is not looked at, such as the one that results go to.
    Names that begin with a dot, and `__MACOSX`, are not looked at. Links to folders are followed once.
    Raises InputError when the folder cannot be listed.
    """
    folder, found = Path(folder), []

    def refuse(error: OSError) -> None:
        if error.filename == str(folder):
            raise InputError(f"{folder} cannot be listed ({error.strerror}); give the folder that holds the images")

    visited = {os.path.realpath(leave_out)} if leave_out else set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        names = [name for name in names if not name.startswith(".") and name.lower().endswith(EXTENSIONS)]
        found += [Path(place, name).relative_to(folder).as_posix() for name in names]
    return sorted(found)


class Images:
    """The image files of a folder and of the folders in it.

    An image's id is its name without ending; where two have the same, the name; where that is shared, too, the path.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        # Copying through macOS or a zip can turn "é" from one code point into two; NFC finds the file again.
        self._paths = {_normal(relative): self.folder / relative for relative in image_files(folder)}
        self._names, self._stems = defaultdict(list), defaultdict(list)  # -> relative paths
        for relative in self._paths:
            self._names[_last(relative)].append(relative)
            self._stems[_stem(relative)].append(relative)

    def find(self, reference: str) -> Path | None:
        """The image that a reference means: a path in the folder, else a name, else a name without ending.

        Folders of another machine, also with backslashes, are left aside, so that no reference leads out of the folder.
        None when there is no such image, or several of which none is meant more.
        """
        reference = _normal(reference.replace("\\", "/"))
        if reference in self._paths:
            return self._paths[reference]
        found = self._names.get(_last(reference)) or self._stems.get(_stem(reference)) or []
        found = [relative for relative in found if reference.endswith(f"/{relative}")] or found
        return self._paths[found[0]] if len(found) == 1 else None

    def id(self, path: Path) -> str:
        """The id of an image of the folder."""
        relative = _normal(path.relative_to(self.folder).as_posix())
        for text, known in ((_stem(relative), self._stems), (_last(relative), self._names)):
            if len(known[text]) == 1:
                return text
        return relative.replace("/", "__")

    def problems(self, used: Iterable[Path | None]) -> list[Problem]:
        """A row for each name without ending that several images share, and for each image that is not used."""
        rows, used = [], set(used)
        for stem, found in self._stems.items():
            if len(found) > 1:
                detail = f"{' and '.join(found)} are different images; their ids have the ending, too"
                rows.append(Problem(stem, "stem ambiguous", detail))
        for path in self._paths.values():
            if path not in used:
                detail = f"{path.name} has no annotation, so nobody knows whether it is sound; it is not used"
                rows.append(Problem(self.id(path), "image not listed", detail))
        return rows


def match(
    images: Images, entries: Iterable[tuple[str, object]], read: Callable[..., Record], problems: Iterable[Problem] = ()
) -> tuple:
    """What a reader returns, from pairs of a reference to an image and its annotation, and problems of the split.

    `read(id, image, annotation)` gives the record, for each reference that means an image; an InputError that it
    raises, or one of MISFITS, becomes the problem of the annotation.
    """
    entries = list(entries)
    found = [images.find(reference) for reference, _ in entries]
    ids = [images.id(path) if path else _stem(entry[0]) for path, entry in zip(found, entries, strict=True)]

    def records():
        for id, path, (reference, annotation) in zip(ids, found, entries, strict=True):
            if path is None:
                detail = f"{reference} is annotated, but no image of {images.folder}, or several, have that name"
                yield unusable(id, "image missing", detail)
            else:
                try:
                    yield read(id, path, annotation)
                except (InputError, *MISFITS) as error:
                    told = str(error) if isinstance(error, InputError) else misfit(error)
                    yield unusable(id, "annotation unreadable", told)

    return ids, records(), [*problems, *images.problems(found)]


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _stem(path: str) -> str:
    """The name without its ending, if that is an image's: an id may hold dots of its own."""
    stem, ending = os.path.splitext(_last(path))
    return stem if ending.lower() in EXTENSIONS else stem + ending


def read_json(path: Path):
    """The content of a JSON file; raises InputError when it cannot be read, is not JSON or gives a key twice."""
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_once)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.{what_it_is(path) or ' Repair or replace it.'}") from None


def _once(pairs: list[tuple]) -> dict:
    """`object_pairs_hook`: Python's own would keep the last of repeated keys and say nothing."""
    plain = dict(pairs)
    if len(plain) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{shorten(key)} is given twice")
    return plain


def read_object(path: Path, name: str) -> dict:
    """The object in a JSON file that has a list `name`; raises InputError for anything else."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
        raise InputError(f"{path} holds no object with a list `{name}`; replace it")
    return content
