"""What these tests take from the other tests' helpers, in one place."""

from tests.matrix.servers import ROOT, free_port, running, simulated
from tests.support import SECRET_KEY

__all__ = ["ROOT", "SECRET_KEY", "free_port", "running", "simulated"]
