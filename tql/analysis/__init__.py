"""What a trained critic looks like, and the pictures of a run."""
