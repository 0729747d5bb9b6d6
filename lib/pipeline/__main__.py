"""`python -m lib.pipeline PLAN.yaml`."""

import sys

from lib.pipeline.run import main

sys.exit(main())
