"""Training images that a run keeps out of training (`val_split`): drawn for prepared data, recorded by each run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from lib.config import Experiment
from lib.data.prepare import REMEDY
from lib.errors import InputError
from lib.files import replacing, writing

RECORD = "held_out.json"  # in a run's folder


def hold_out(data_path, n: int, seed: int) -> list[str]:
    """`val_split`: ids of n training images (with heatmap and score) to be kept out of training, sorted.

    The draw is stored in `<data_path>/train/held_out_<n>_<seed>.json` and read from there ever after, so the
    same parameters give the same images. Raises InputError when n is negative or leaves nothing to train on,
    or when the stored draw does not belong to the manifest.
    """
    if n == 0:
        return []
    folder, labelled = Path(data_path) / "train", _labelled(data_path)
    if not 0 < n < len(labelled):
        most = max(len(labelled) - 1, 0)
        raise InputError(f"val_split is {n}, but {folder} has {len(labelled)} labelled images; give 0 to {most}")
    path = folder / f"held_out_{n}_{seed}.json"
    if path.is_file():
        anew = "delete it to draw the images anew, for runs that have not begun"
        return _read(path, n, labelled, f"{path} does not belong to the manifest beside it; {anew}")
    ids = sorted(np.random.default_rng(seed).permutation(labelled)[:n].tolist())
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
    gone = f"{path} names images that {Path(data_path) / 'train'} no longer holds with labels"
    remedy = "restore the data or name another split (to train: another experiment_name)"
    return _read(path, config.val_split, _labelled(data_path), f"{gone}; {remedy}")


def record_held_out(config: Experiment) -> None:
    """Keep in the run's folder what it holds out; a record that is there stands."""
    path = config.folder / RECORD
    if config.val_split and not path.is_file():
        _write(path, held_out_by(config.folder, config.data_path, config))


def _labelled(data_path) -> list[str]:
    """The ids of train that can be held out, sorted."""
    folder = Path(data_path) / "train"
    if not (folder / "manifest.parquet").is_file():
        raise InputError(f"{folder} holds no manifest.parquet; prepare the data first or correct DATA_PATH")
    table = pd.read_parquet(folder / "manifest.parquet", columns=["id", "labelled", "score"])
    return sorted(table.loc[table["labelled"] & table["score"].notna(), "id"])


def _read(path: Path, n: int, labelled: list[str], told: str) -> list[str]:
    """The n ids in a file; InputError with `told` when they are not n of the labelled ones."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
        fits = len(set(ids) & set(labelled)) == len(ids) == n
    except (ValueError, TypeError):
        fits = False
    if not fits:
        raise InputError(told)
    return ids


def _write(path: Path, ids: list[str]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(ids, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
