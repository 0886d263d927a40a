"""Mini-Human: a procedural world of little people. A seed gives a scene: picture, caption, pose and mask, the same on every machine."""
