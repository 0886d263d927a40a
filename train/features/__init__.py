"""What the frozen CLIP says of pictures and captions: computed once, kept on disk, read in slices."""
