"""Inputs from outside the store: addresses, and the digests that pin them."""
