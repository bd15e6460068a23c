"""Decoders of any family: find their blocks, load, mask, fingerprint and export them."""
