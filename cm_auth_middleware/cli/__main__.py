"""Run the command as ``python -m cm_auth_middleware.cli``."""

from cm_auth_middleware.cli import main

main()
