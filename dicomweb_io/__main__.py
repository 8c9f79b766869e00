"""``python -m dicomweb_io`` is the command ``dicomweb-io``."""

import sys

from dicomweb_io.cli import main

if __name__ == "__main__":
    sys.exit(main())
