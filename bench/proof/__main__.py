"""python -m bench.proof"""

from __future__ import annotations

import sys

from bench.proof.runs import main

if __name__ == "__main__":
    sys.exit(main())
