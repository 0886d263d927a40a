"""The trainer's pictures, captions and poses: three formats in, one kind of record out, every problem named."""
