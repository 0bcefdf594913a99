"""What the numbers and pictures in docs/ were made with: each module is a command, run from the repository's root."""
