"""What these tests take from the other tests' helpers, in one place."""

from tests.helpers.servers import free_port
from tests.helpers.world import SECRET_KEY
from tests.matrix.server_processes import ROOT, running, simulated

__all__ = ["ROOT", "SECRET_KEY", "free_port", "running", "simulated"]
