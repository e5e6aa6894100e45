"""`python -m adapterhub` is the command `adapterhub`."""

import sys

from .cli import main

sys.exit(main())
