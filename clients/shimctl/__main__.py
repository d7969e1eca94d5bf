"""`python -m clients.shimctl`."""

from clients.shimctl.main import main

main(prog_name="shimctl")
