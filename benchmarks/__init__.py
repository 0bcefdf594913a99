"""Speed against the libraries a user would pick instead, and against the machine."""
