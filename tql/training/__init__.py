"""A run of training: its chunks, its directory on the disk, its checkpoints; methods by their
names."""
