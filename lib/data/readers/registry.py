"""The formats of raw data: `READERS`, by the name that notebook 1 takes as `reader`.

A reader is a function `read(data_root, split) -> (ids, records, problems)`. `ids` are all ids that the split lists.
`records` gives a Record for each of them, in that order and one at a time. `problems` are those of the split as a
whole. A reader raises NoSplitError when the data have no such split, InputError when it cannot be read at all.
`data_cards/your_own_data.md` shows how to add one.
"""

from lib.data.readers import coco, cvat, gtpkl, hadm, labelme, labelstudio, pal4vst, richhf, synthscars, xaigd
from lib.data.readers.challenge import REGION_LAYOUT, read_challenge

READERS = {
    "challenge": read_challenge,
    "coco": coco.read_coco,
    "synthscars": synthscars.read_synthscars,
    "hadm": hadm.read_hadm,
    "pal4vst": pal4vst.read_pal4vst,
    "richhf": richhf.read_richhf,
    "xaigd": xaigd.read_xaigd,
    "labelstudio": labelstudio.read_labelstudio,
    "cvat": cvat.read_cvat,
    "labelme": labelme.read_labelme,
    "gtpkl": gtpkl.read_gtpkl,
}
# What a message about a data set whose regions cannot be used ends with.
LAYOUTS = {"challenge": REGION_LAYOUT, "coco": coco.LAYOUT, "hadm": hadm.LAYOUT}
