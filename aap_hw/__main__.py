"""``python -m aap_hw`` is the command ``aap-hw``."""

import sys

from aap_hw.cli.main import main

sys.exit(main())
