"""What a cluster runs: ``python -m jobs.train ...`` is ``xmodal train ...``."""

from __future__ import annotations

import sys

from xmodal_dist.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
