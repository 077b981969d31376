"""``python -m mergewise.cli``."""

from mergewise.cli import main

main()
