"""`python -m gradoracle_server`."""

from __future__ import annotations

import sys

from gradoracle_server.main import main

if __name__ == "__main__":
    sys.exit(main())
