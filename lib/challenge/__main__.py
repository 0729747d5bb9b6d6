"""`python -m lib.challenge INPUT_DIR OUTPUT_DIR` scores `res/output.pkl` against `ref/gt.pkl` as the organisers do.

It writes `OUTPUT_DIR/scores.txt`, which ends with `res/readme.txt`. What is unusual about the files is said on stderr.
`python -m lib.challenge --import FILE STORE` makes a prediction store of a pickle or zip, for the notebooks.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from lib.challenge.submissions import GRID, import_submission, read_submission
from lib.errors import InputError, command
from lib.files import write_text, writing
from lib.metrics.figures import set_figures, undefined
from lib.metrics.heatmaps import Heatmaps
from lib.metrics.matching import COUNTS, PREDICTED_AREA_RATIO, SMOOTHING, count_regions, prepare_truth, to_grid

LINES = {
    "Final_Score": "final_score", "SRCC": "srcc", "PLCC": "plcc", "Precision": "precision", "Recall": "recall",
    "F1_Score": "f1_score", "GIoU": "giou",
}  # fmt: skip
MAX_NOTES = 50


def score_folder(input_dir, output_dir) -> tuple[dict, list[str]]:
    """Score `res/output.pkl` against `ref/gt.pkl` and write `scores.txt`; returns the figures and the notes."""
    result_path, truth_path = Path(input_dir, "res", "output.pkl"), Path(input_dir, "ref", "gt.pkl")
    about = Path(input_dir, "res", "readme.txt")
    truth, truth_notes = read_submission(truth_path)
    predictions, notes = read_submission(result_path)
    notes += truth_notes
    if missing := [id for id in truth.ids if id not in predictions.heatmaps]:
        raise InputError(
            f"{result_path} lacks {len(missing)} ids of {truth_path} ({_names(missing)}); no figure over the whole set "
            "is defined without them, so add a mask and a score for each"
        )
    if extra := [id for id in predictions.ids if id not in truth.heatmaps]:
        notes.append(f"{result_path}: {len(extra)} ids have no ground truth and are not scored ({_names(extra)})")
    if resized := [id for id, mask in truth.heatmaps.items() if mask.shape != GRID]:
        notes.append(f"{truth_path}: {len(resized)} masks are not 512 x 512 and are resized ({_names(resized)})")
    figures, notes_on_figures = _figures(predictions, truth)
    readme = ""
    try:
        readme = about.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        notes.append(f"{about} cannot be read ({error.strerror}); scores.txt ends without it")
    with writing(output_dir, "give another folder"):
        write_text(Path(output_dir) / "scores.txt", _lines(figures) + readme)
    return figures, notes + notes_on_figures


def _figures(predictions: Heatmaps, truth: Heatmaps) -> tuple[dict, list[str]]:
    """Figures and notes as of `lib.metrics.counts.challenge_figures`, without the second that pandas takes to start."""
    counts = []
    for id in truth.ids:
        mask, true = to_grid(predictions.heatmap(id)), prepare_truth(truth.heatmap(id))
        counts += count_regions(mask, true, (PREDICTED_AREA_RATIO,))
    counts = dict(zip(COUNTS, np.transpose(counts), strict=True))
    giou = np.mean((counts["intersection"] + SMOOTHING) / (counts["union"] + SMOOTHING))
    sums = {name: column.sum() for name, column in counts.items()}
    scores = (np.array([source.scores[id] for id in truth.ids]) for source in (predictions, truth))
    figures, notes = set_figures(sums, giou, *scores, krcc=False)
    return figures, notes + undefined(figures | sums)


def _lines(figures: dict) -> str:
    return "".join(f"{line}: {figures[name]:.4f}\n" for line, name in LINES.items())


def _names(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


@command
def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lib.challenge",
        description="Score a submission, or import one so that the notebooks can look at it.",
    )
    parser.add_argument("source", metavar="INPUT_DIR", help="folder with res/output.pkl, res/readme.txt and ref/gt.pkl")
    parser.add_argument("target", metavar="OUTPUT_DIR", help="folder for scores.txt")
    into = "read a pickle or zip FILE into the new folder STORE, such as runs/theirs/predictions/test"
    parser.add_argument("--import", dest="importing", action="store_true", help=into)
    scores = "the file's worst and best score, such as 1 5; 0 1 when not given"
    parser.add_argument("--score-range", nargs=2, type=float, metavar=("WORST", "BEST"), help=scores)
    options = parser.parse_args(arguments)
    if options.score_range and not options.importing:
        parser.error("--score-range is for --import; the scorer takes scores as they are")
    if options.importing:
        store, notes = import_submission(options.source, options.target, options.score_range or (0.0, 1.0))
        text = f"{store.path} now holds the masks and scores of {len(store.ids):,} images\n"
    else:
        figures, notes = score_folder(options.source, options.target)
        text = _lines(figures)
    for note in notes[:MAX_NOTES] + [f"and {len(notes) - MAX_NOTES} more notes"] * (len(notes) > MAX_NOTES):
        print(f"note: {note}", file=sys.stderr)
    print(text, end="")


if __name__ == "__main__":
    sys.exit(main())
