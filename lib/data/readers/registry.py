"""The formats of raw data: `READERS`, by the name that notebook 1 takes as `reader`.

A reader is a function `read(data_root, split) -> (ids, records, problems)`. `ids` are all ids that the split lists.
`records` gives a Record for each of them, in that order and one at a time. `problems` are those of the split as a
whole. A reader raises NoSplitError when the data have no such split, InputError when it cannot be read at all.
`data_cards/your_own_data.md` shows how to add one.
"""

from lib.data.readers import challenge, coco, hadm
from lib.data.readers.challenge import read_challenge
from lib.data.readers.coco import read_coco
from lib.data.readers.cvat import read_cvat
from lib.data.readers.gtpkl import read_gtpkl
from lib.data.readers.hadm import read_hadm
from lib.data.readers.labelme import read_labelme
from lib.data.readers.labelstudio import read_labelstudio
from lib.data.readers.pal4vst import read_pal4vst
from lib.data.readers.richhf import read_richhf
from lib.data.readers.synthscars import read_synthscars
from lib.data.readers.xaigd import read_xaigd

READERS = {
    "challenge": read_challenge,
    "coco": read_coco,
    "synthscars": read_synthscars,
    "hadm": read_hadm,
    "pal4vst": read_pal4vst,
    "richhf": read_richhf,
    "xaigd": read_xaigd,
    "labelstudio": read_labelstudio,
    "cvat": read_cvat,
    "labelme": read_labelme,
    "gtpkl": read_gtpkl,
}
# What a message about a data set whose regions cannot be used ends with.
LAYOUTS = {"challenge": challenge.REGION_LAYOUT, "coco": coco.LAYOUT, "hadm": hadm.LAYOUT}
