"""`python -m ddpm` is `ddpm`."""

from ddpm.cli import main

main()
