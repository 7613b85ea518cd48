"""`python -m covector`: the same as the `covector` command."""

from covector.cli.main import main

main()
