"""`python -m lib.challenge INPUT_DIR OUTPUT_DIR`."""

import sys

from lib.challenge import main

sys.exit(main())
