"""``python -m streamview.cli``, where the ``streamview`` script is not on the path."""

import sys

from streamview.cli import main

sys.exit(main())
