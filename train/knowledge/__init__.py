"""Stages 1 and 2: from tokens to a codebook, from captions to its entries."""
