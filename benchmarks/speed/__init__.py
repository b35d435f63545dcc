"""How fast, how small: the guard and the generator beside other engines, on the same weights, in one run."""
