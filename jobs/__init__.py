"""Entry points that a cluster runs, as ``python -m jobs.train --config run.yaml``; each calls one public function."""
