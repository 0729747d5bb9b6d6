"""What is missing here, and how to mend it: `make doctor`, or in a notebook `examine(config)`.

    report    a finding and how findings are told
    software  Python, packages, kernel, widgets, browser
    machine   GPU, memory, disk, ports
    inputs    data, the hub

Nothing but the standard library is imported before a check needs it: a half installed environment can be examined.
"""

from lib.doctor.examination import examine

__all__ = ["examine"]
