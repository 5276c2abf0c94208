"""Classical baselines on the rows, splits and decoded values of a network, and whether the network beats them."""
