"""Stage 3: the adapter on a frozen SD1.5 UNet (Eq. 1)."""
