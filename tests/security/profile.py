"""How many inputs the properties get that hypothesis makes up, and how."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

# How many inputs each property gets: few in the quick run, CM_AUTH_FUZZ for a night.
EXAMPLES = int(os.environ.get("CM_AUTH_FUZZ", "50"))
PROFILE = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
