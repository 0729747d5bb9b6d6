"""Which images a run trains on and which it validates on.

- `train`: the labelled images, without those that `val_split` holds out;
- `negatives`: `negative_num` photographs without distortion, drawn by the run's seed;
- `pseudo_labels`: images that nobody annotated, with an earlier run's predictions as labels;
- validation: the held-out images, else the labelled images of `val`, else none.

Held-out images are drawn once for the prepared data (`hold_out`), and each run records its own (`record_held_out`).
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.config import Experiment
from lib.data.prepare import REMEDY
from lib.data.readers.files import EXTENSIONS
from lib.errors import InputError
from lib.files import what_it_is, write_text, writing
from lib.metrics.setting import Setting, chosen_setting
from lib.stores import LabelStore, PredictionStore, open_split

RECORD = "held_out.json"  # in a run's folder


class Source(NamedTuple):
    """Images of a prepared split, with its own labels or with what a run predicted of them.

    Only what the run's own `setting` counts as regions becomes a label, with its predicted values: losses that ask
    `target > 0` would find damage everywhere otherwise. The score is the predicted one.
    """

    images: LabelStore
    ids: list[str]
    predictions: PredictionStore | None = None
    setting: Setting | None = None


def training_sources(config: Experiment) -> list[Source]:
    """The images to train on, in their order: those of train, negatives, pseudo-labelled ones.

    Raises InputError when the prepared data are missing, hold nothing labelled or too few negatives, or when
    pseudo-labels are of images that the run trains on with labels or validates on.
    """
    train = LabelStore(Path(config.data_path) / "train")
    held_out = set(held_out_by(config.folder, config.data_path, config))
    sources = [Source(train, [id for id in labelled(train) if id not in held_out])]
    if not sources[0].ids:
        raise InputError(f"{train.path} has no labelled image to train on; check its problems.csv")
    if config.negative_num:
        negatives = LabelStore(Path(config.data_path) / "negatives")
        if len(negatives.ids) < config.negative_num:
            held = f"{negatives.path} holds {len(negatives.ids)}"
            raise InputError(f"negative_num: {config.negative_num}, but {held}; prepare more or lower it")
        chosen = np.random.default_rng(config.seed).permutation(negatives.ids)[: config.negative_num]
        sources.append(Source(negatives, sorted(chosen)))
    return [*sources, _pseudo_labels(config, sources[0])] if config.pseudo_labels else sources


def validation_source(config: Experiment) -> Source | None:
    """The images to evaluate on while training: the held-out ones, else the labelled ones of `val`, else None."""
    if config.val_split:
        held_out = held_out_by(config.folder, config.data_path, config)
        return Source(LabelStore(Path(config.data_path) / "train"), held_out)
    if not (Path(config.data_path) / "val" / "manifest.parquet").is_file():
        return None
    store = LabelStore(Path(config.data_path) / "val")
    return Source(store, labelled(store)) if labelled(store) else None


def labelled(store: LabelStore) -> list[str]:
    """The ids of images that annotators looked at; they may have found nothing."""
    return list(store.table.index[store.table["labelled"]])


def _pseudo_labels(config: Experiment, trained: Source) -> Source:
    """Open `runs/<run>/predictions/<split>`; refuse images that this run has labels for or evaluates on."""
    path = Path(config.pseudo_labels)
    predictions, images = PredictionStore(path), open_split(config.data_path, path.name)
    if unknown := [id for id in predictions.ids if id not in images.table.index]:
        raise InputError(
            f"pseudo_labels: {path} holds predictions of {unknown[0]}, which {images.path} does not know; "
            "predict the split again"
        )
    validated = validation_source(config) if config.val_iter > 0 or config.val_split else None
    uses = {"trained on with the annotators' labels": trained, "those that this run evaluates on": validated}
    for use, source in uses.items():
        shared = set(predictions.ids) & set(source.ids) if source and source.images.path == images.path else ()
        if shared:
            raise InputError(
                f"pseudo_labels: {len(shared)} images of {path} are {use} (for example {min(shared)}); give the "
                "predictions of another split"
            )
    return Source(images, predictions.ids, predictions, chosen_setting(path.parents[1]))


def hold_out(data_path, n: int, seed: int) -> list[str]:
    """`val_split`: ids of n training images (with heatmap and score) to be kept out of training, sorted.

    The draw is stored in `<data_path>/train/held_out_<n>_<seed>.json` and read from there ever after, so the
    same parameters give the same images. Raises InputError when n is negative or leaves nothing to train on,
    or when the stored draw does not belong to the manifest.
    """
    if n == 0:
        return []
    folder, eligible = Path(data_path) / "train", _eligible(data_path)
    if not 0 < n < len(eligible):
        most = max(len(eligible) - 1, 0)
        raise InputError(f"val_split is {n}, but {folder} has {len(eligible)} labelled images; give 0 to {most}")
    path = folder / f"held_out_{n}_{seed}.json"
    if path.is_file():
        return _read(path, n, eligible, "Delete it to draw the images anew, for runs that have not begun.")
    ids = sorted(np.random.default_rng(seed).permutation(eligible)[:n].tolist())
    with writing(folder, REMEDY):
        _write(path, ids)
    return ids


def held_out_by(run, data_path, config: Experiment) -> list[str]:
    """The ids that the run in this folder holds out: what it recorded, whatever has become of the draw since.

    A run that has not begun, or began before runs kept a record, has those drawn for the data.
    Raises InputError when the data no longer hold one of them with labels, and as `hold_out` does.
    """
    path = Path(run) / RECORD
    if not path.is_file():
        return hold_out(data_path, config.val_split, config.seed)
    remedy = "Restore the data or name another split (to train: another experiment_name)."
    return _read(path, config.val_split, _eligible(data_path), remedy)


def record_held_out(config: Experiment) -> None:
    """Keep in the run's folder what it holds out; a record that is there stands."""
    path = config.folder / RECORD
    if config.val_split and not path.is_file():
        _write(path, held_out_by(config.folder, config.data_path, config))


def _eligible(data_path) -> list[str]:
    """The ids of train that can be held out, sorted: not those of images that differ in their ending only.

    "a.png" and "a.jpg" may be one picture twice; held out, one of them would be evaluated on what the other taught.
    """
    table = LabelStore(Path(data_path) / "train").table
    stems = table.index.str.replace(rf"({'|'.join(EXTENSIONS)})$", "", case=False, regex=True)
    return sorted(table.index[table["labelled"] & table["score"].notna() & ~stems.duplicated(keep=False)])


def _read(path: Path, n: int, eligible: list[str], remedy: str) -> list[str]:
    """The n ids in a file; raises InputError unless they are n of the eligible ones."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
        if len(set(ids) & set(eligible)) == len(ids) == n:
            return ids
    except (OSError, ValueError, TypeError):
        pass  # no list of ids
    raise InputError(f"{path} is no list of {n} labelled images of train.{what_it_is(path)} {remedy}")


def _write(path: Path, ids: list[str]) -> None:
    write_text(path, json.dumps(ids, ensure_ascii=False, indent=0) + "\n")
