"""`python -m tfbio`."""

import sys

from tfbio.cli import main

sys.exit(main())
