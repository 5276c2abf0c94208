"""What a cluster runs: ``python -m jobs.evaluate ...`` is ``xmodal evaluate ...``."""

from __future__ import annotations

import sys

from xmodal_dist.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
