"""What notebook 1 does and shows: splits prepared with their progress, and tables and figures of the result."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from lib import plots
from lib.data.annotations import LEFT_OUT
from lib.data.prepare import prepare_split
from lib.data.regions import LEVELS
from lib.errors import InputError
from lib.metrics.baseline import mean_label
from lib.metrics.statistics import SURE
from lib.plots.galleries import contact_sheet
from lib.plots.style import figure
from lib.plots.tables import say
from lib.stores import LabelStore
from lib.workspace import ProgressLines

# Problems after which a whole image is not used; `LEFT_OUT` are those that cost one region.
IMAGE_LOST = ("id refused", "record malformed", "image missing", "image unreadable")
MOST_CATEGORIES = 15


def prepare_splits(data_root, data_path, splits: Iterable[str], workers: int = 0) -> dict[str, LabelStore]:
    """Prepare the splits that are there, printing progress; those that are not are named, not fatal, except "train".

    `workers` threads (0: one a core). Raises InputError when none of the splits exists; see `lib.data.prepare`.
    """
    splits = list(dict.fromkeys(splits))
    present = [split for split in splits if split == "train" or (Path(data_root) / split).is_dir()]
    if not present:
        named = ", ".join(f"{split}/" for split in splits) or "no split"
        raise InputError(f"{data_root} holds none of {named}; correct data_root or the parameter splits")
    stores = {}
    for split in present:
        prepare_split(data_root, data_path, split, workers or None, ProgressLines("prepared"))
        stores[split] = LabelStore(Path(data_path) / split)
    absent = [split for split in splits if split not in present]
    if absent:
        say(f"{data_root} has no {' and no '.join(absent)}; only {', '.join(present)} could be prepared.")
    return stores


def counts(stores: dict[str, LabelStore]) -> pd.DataFrame:
    """One row a split: images, how many have which label, regions, annotators, sizes."""
    rows = []
    for split, store in stores.items():
        table, labelled = store.table, store.table[store.table["labelled"]]
        rows.append({
            "split": split,
            "images": len(table),
            "with heatmap": len(labelled),
            "with score": int(table["mos"].notna().sum()),
            "marked by nobody": int((labelled["n_regions"] == 0).sum()),
            "regions": int(table["n_regions"].sum()),
            "annotators an image": _span(labelled["n_annotators"]),
            "mean MOS": table["mos"].mean(),
            "width (px)": _span(table["width"]),
            "height (px)": _span(table["height"]),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _span(values: pd.Series) -> str:
    if values.empty:
        return "-"
    low, high = int(values.min()), int(values.max())
    return f"{low}" if low == high else f"{low} to {high}"


def problems(stores: dict[str, LabelStore]) -> pd.DataFrame:
    """The rows of every `problems.csv`, counted by split and kind, with what became of them and one example."""
    rows = []
    for split, store in stores.items():
        table = pd.read_csv(store.path / "problems.csv", dtype=str, keep_default_na=False)
        for problem, part in table.groupby("problem", sort=False):
            first = part.iloc[0]
            rows.append((split, problem, len(part), _effect(problem), first["id"], first["detail"]))
    table = pd.DataFrame(rows, columns=["split", "problem", "rows", "effect", "example", "detail of the example"])
    return table.sort_values(["split", "rows"], ascending=[True, False], ignore_index=True, kind="stable")


def _effect(problem: str) -> str:
    if problem in IMAGE_LOST:
        return "image not used"
    return "region left out" if problem in LEFT_OUT else "used, see detail"


def say_problems(table: pd.DataFrame, stores: dict[str, LabelStore]) -> str:
    """How many rows of which effect, or that there are none."""
    if table.empty:
        return f"No problem was found in {', '.join(stores)}: every image and every region is used as it is."
    effects = table.groupby("effect")["rows"].sum()
    said = ", ".join(f"{rows:,} x {effect}" for effect, rows in effects.items())
    return f"{table['rows'].sum():,} problems ({said}); all of them are in the files problems.csv."


def check_heatmaps(stores: dict[str, LabelStore], n: int = 50) -> str:
    """Look at the first `n` labelled heatmaps of each split: their sizes must be the images' and their values counts.

    Raises InputError naming the first that is wrong.
    """
    checked = 0
    for store in stores.values():
        for id, row in store.table[store.table["labelled"]].head(n).iterrows():
            heatmap = store.heatmap(id)
            if heatmap.shape != (row["height"], row["width"]) or not set(np.unique(heatmap)) <= set(LEVELS):
                path = store.heatmap_path(id)
                raise InputError(
                    f"{path} has another size than its image, or other values than {LEVELS}; prepare again"
                )
            if not np.isclose(np.count_nonzero(heatmap) / heatmap.size, row["distorted"]):
                raise InputError(
                    f"{store.heatmap_path(id)} is not the heatmap that manifest.parquet describes; prepare again"
                )
            checked += 1
    return f"{checked} heatmaps were read back: sizes, values and marked areas agree with the manifest."


def region_areas(store: LabelStore) -> np.ndarray:
    """Area of every annotated region as a fraction of its image, float [n_regions]."""
    regions = pd.read_parquet(store.path / "regions.parquet")
    frame = (store.table["width"] * store.table["height"]).reindex(regions["id"]).to_numpy(float)
    pixels = [
        _area(np.asarray(row.points).reshape(-1, 2), row.shape) for row in regions[["shape", "points"]].itertuples()
    ]
    return np.array(pixels, float) / frame


def _area(points: np.ndarray, shape: str) -> float:
    """Pixels enclosed by a rectangle's two corners or a polygon [N, 2]."""
    if shape == "rectangle":
        return float(np.prod(np.abs(points[1] - points[0])))
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def score_figure(stores: dict[str, LabelStore]) -> tuple[Figure, str]:
    """Histogram of scores, and how the marked area follows them."""
    tables = {split: store.table for split, store in stores.items()}
    fig, axes = figure(1, 2, 3.2)
    plots.score_histogram(axes[0], {split: table["mos"].to_numpy() for split, table in tables.items()})
    plots.damage_by_score(axes[1], tables)
    known = pd.concat(list(tables.values()))[["mos", "distorted"]].dropna()
    if known.nunique().min() < 2:
        return fig, "There are too few scores and labels to see whether they agree."
    found, share = spearmanr(known["mos"], known["distorted"]), float((known["mos"] < 3).mean())
    falls = "the more area is marked, the lower the score ({})"
    does_not = "scores do not fall with the marked area beyond chance ({}), which deserves a look at the samples"
    said = falls if found.statistic < 0 and found.pvalue < SURE else does_not
    rank = f"rank correlation {found.statistic:+.2f}, p = {found.pvalue:.2g}"
    return fig, f"{share:.0%} of {len(known):,} scored images lie below 3; {said.format(rank)}."


def region_figure(stores: dict[str, LabelStore]) -> tuple[Figure, str]:
    """Sizes of regions and agreement of annotators."""
    areas = {split: region_areas(store) for split, store in stores.items()}
    agreement = {split: store.table["agreement"].to_numpy(float) for split, store in stores.items()}
    fig, axes = figure(1, 2, 3.2)
    plots.region_sizes(axes[0], areas)
    plots.agreement(axes[1], agreement)
    sizes = np.concatenate(list(areas.values()))
    found = np.concatenate(list(agreement.values()))
    if not len(sizes):
        return fig, "No annotator drew a region."
    alone = (
        "" if np.isnan(found).all() else f"; annotators' masks overlap with a median IoU of {np.nanmedian(found):.2f}"
    )
    return fig, f"Half of the {len(sizes):,} regions cover less than {np.median(sizes):.1%} of their image{alone}."


def place_figure(stores: dict[str, LabelStore]) -> tuple[Figure, str]:
    """Mean label heatmap of each split on one scale, and the shapes of images."""
    means = {split: mean_label(store) for split, store in stores.items()}
    most = max([1.0, *(float(mean.max()) for mean in means.values() if mean is not None)])
    fig, axes = figure(1, len(means) + 1, 2.6, width_ratios=[1] * len(means) + [1.7])
    for ax, (split, mean) in zip(axes, means.items(), strict=False):
        plots.mean_heatmap(ax, mean, f"Mean label of {split}", most)
    if drawn := [ax.images[0] for ax in axes[:-1] if ax.images]:
        label = "mean heatmap value (0..255)"
        fig.colorbar(drawn[0], ax=list(axes[:-1]), location="bottom", shrink=0.6, aspect=40, label=label)
    ratios = {split: (store.table["width"] / store.table["height"]).to_numpy() for split, store in stores.items()}
    plots.aspect_ratios(axes[-1], ratios)
    mean = next((mean for mean in means.values() if mean is not None), None)
    if mean is None:
        return fig, "No split has labels, so nothing can be said about where they lie."
    size = len(mean)
    middle = float(mean[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4].sum() / mean.sum()) if mean.any() else 0.0
    return fig, (
        f"The middle quarter of the frame holds {middle:.0%} of what annotators marked: a model that ignores the image "
        "already knows that, which is why figures are read beside the trivial baseline."
    )


def attribute_figure(stores: dict[str, LabelStore], columns=("kinds", "domain", "layout")) -> tuple[Figure | None, str]:
    """Images by each of the attributes that the data set has, over all splits."""
    table = pd.concat([store.table.assign(split=split) for split, store in stores.items()])
    shown = [column for column in columns if column in table]
    if not shown:
        return None, f"This data set has no attributes such as {', '.join(columns)}."
    found = {column: _categories(table[column]) for column in shown}
    most = min(MOST_CATEGORIES, max(map(len, found.values())))
    fig, axes = figure(1, len(shown), 1.0 + 0.26 * most, squeeze=False)
    for ax, (column, values) in zip(axes[0], found.items(), strict=True):
        cut = f", the most frequent {MOST_CATEGORIES}" if len(values) > MOST_CATEGORIES else ""
        plots.category_counts(ax, values.head(MOST_CATEGORIES), f"Images by {column}{cut}")
    said = [f"{column} has {len(values)} values, most often {values.index[0]}" for column, values in found.items()]
    return fig, f"Of the attributes, {'; '.join(said)}. An image with several values counts for each."


def _categories(values: pd.Series) -> pd.Series:
    parts = values.fillna("").astype(str).str.split("+").map(lambda names: sorted({name or "none" for name in names}))
    return parts.explode().value_counts()


def sample_sheet(store: LabelStore, split: str, n: int = 8, seed: int = 0) -> tuple[Figure, str]:
    """A contact sheet of `n` images spread over the scores, from the worst to the best."""
    table = store.table.sample(frac=1, random_state=seed).sort_values("mos", kind="stable")
    places = np.linspace(0, len(table) - 1, min(n, len(table))).round().astype(int)
    fig = contact_sheet(store, table.index[places], title=f"{split}, from low to high scores")
    return fig, f"{len(places)} of {len(table):,} images of {split}."


def closing(stores: dict[str, LabelStore], data_path) -> str:
    """What was written where, and what to do next."""
    images = sum(len(store.table) for store in stores.values())
    labelled = sum(int(store.table["labelled"].sum()) for store in stores.values())
    size = sum(path.stat().st_size for store in stores.values() for path in store.path.rglob("*") if path.is_file())
    return (
        f"{images:,} images ({labelled:,} with a heatmap) are prepared in {data_path}: {', '.join(stores)}, "
        f'{size / 1e6:.1f} MB. Train on them with 2_train.ipynb and data_path = "{data_path}".'
    )
