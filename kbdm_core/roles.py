"""What a chunk of the batch is for classifier-free guidance: samplers stack the same latents once per prompt."""

POSITIVE, NEGATIVE = "positive", "negative"
