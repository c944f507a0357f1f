"""`python -m gmfast`."""

from .cli import main

main()
