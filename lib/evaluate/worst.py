"""What "worst" means, for the error analysis (notebook 4) and the mask inspector (notebook 5) alike."""

import pandas as pd


def worst_first(wrong_regions: pd.Series, wrong_area: pd.Series, score: pd.Series) -> list:
    """The ids with the most wrong regions first, among these the most wrong area, then the lowest predicted score.

    Arguments: by id, `wrong_regions` and `wrong_area` missed and false ones together, `score` on any scale. Images
    without a value come last, equal ones stay in the order given.
    """
    keys = pd.DataFrame({"regions": wrong_regions, "area": wrong_area, "badness": -score})
    return list(keys.sort_values(list(keys), ascending=False, na_position="last", kind="stable").index)
