"""Hyperparameter search on Ray Tune; ends in a bundle."""
