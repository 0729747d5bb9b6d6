"""`python -m lib.pipeline PLAN.yaml`."""

import sys

from lib.pipeline import main

sys.exit(main())
