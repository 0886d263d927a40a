"""The frozen SD1.5 that an adapter is trained on: UNet, autoencoder and text encoder from local files."""
