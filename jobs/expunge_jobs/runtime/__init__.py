"""A step's surroundings: what it is given, how it says how it goes, when it stops."""
