"""The deployed consumer: ``python worker.py``. See ``python worker.py --help``."""

import sys

from stylegen.worker import main

if __name__ == "__main__":
    sys.exit(main())
