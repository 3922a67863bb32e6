"""`python -m gradoracle.cli`."""

from __future__ import annotations

import sys

from gradoracle.cli import main

sys.exit(main())
