"""Scripts that made the numbers and pictures in docs/. Run them from the root of the repository, as modules."""
