"""What an id may be: it becomes the name of files, `heatmaps/<id>.png` first of all, on any system."""

# A file system has 255 bytes for a name. While it is written, `<id>.png` carries `.<process id>.part` as well, of up
# to ten digits (`lib.files.replacing`).
ID_BYTES = 235
# What leads out of a folder, or what Windows and file systems made for it have in no name.
FORBIDDEN = '/\\:*?"<>|'


def refuse_id(id) -> str:
    """Why an id must not become a file name, as a clause without remedy; empty when it may."""
    if not isinstance(id, str):
        return f"an id is text, not {type(id).__name__}"
    if not id or id in (".", ".."):
        return "an id must name a file"
    if not id.isprintable():  # also half a surrogate pair, which has no UTF-8
        return "an id must not hold characters that cannot be printed"
    if any(character in FORBIDDEN for character in id):
        return f"an id must not hold any of {' '.join(FORBIDDEN)}"
    size = len(id.encode("utf-8"))
    return f"the id takes {size} bytes, more than {ID_BYTES}" if size > ID_BYTES else ""
