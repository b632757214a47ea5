"""The deployed consumer: ``python worker.py``. See ``python worker.py --help``."""

import os
import signal
import sys

if __name__ == "__main__":
    if not sys.argv[1:]:  # it consumes; to be ended while it begins is a good end
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    from stylegen.worker import main

    sys.exit(main())
