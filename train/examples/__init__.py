"""What the adapter is trained on: pictures in aspect-ratio buckets, their numbered variants, and their latents and pose masks on disk."""
