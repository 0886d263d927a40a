"""KB-DMGen's method, framework-free: a guidance with three ports for the attention of an SD1.5 UNet."""
