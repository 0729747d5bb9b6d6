"""`python -m lib.sharing RUN [user/name]`."""

import sys

from lib.sharing import main

sys.exit(main())
