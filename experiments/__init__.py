"""What the numbers and pictures in docs/ were made with; every module is one command, run from the repository's root."""
