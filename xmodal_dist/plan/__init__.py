"""How long a scoring run will take and what it will cost: simulated in virtual time, with what was measured."""
