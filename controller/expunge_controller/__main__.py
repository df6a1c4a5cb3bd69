"""The ``expunge`` command as ``python -m expunge_controller``."""

from __future__ import annotations

import sys

from expunge_controller.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
