import sys

from lib.train.loop import main

sys.exit(main())
