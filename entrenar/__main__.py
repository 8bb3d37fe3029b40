"""`python -m entrenar` is `entrenar`."""

from entrenar.cli.main import main

main()
