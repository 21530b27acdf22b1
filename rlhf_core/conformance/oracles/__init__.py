"""What the checks expect: the papers' formulas as loops over Python floats. Nothing of our kernels is in here."""
