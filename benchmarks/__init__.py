"""Side-by-side benchmarks: ``python -m benchmarks`` runs them all, ``python -m benchmarks b1 b5`` some of them."""
