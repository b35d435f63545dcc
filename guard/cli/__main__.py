"""``python -m guard.cli`` is the ``guard`` command."""

import sys

from guard.cli import main

sys.exit(main())
