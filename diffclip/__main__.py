"""`python -m diffclip ...`, also under `accelerate launch -m diffclip ...`."""

import sys

from diffclip.cli import main

if __name__ == "__main__":
    sys.exit(main())
