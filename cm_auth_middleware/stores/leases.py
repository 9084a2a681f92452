"""What the stores agree on about leases that run out; see `TellsLapsedLeases`."""

LAPSED = 86_400.0
"""Seconds that a lease which was not given back is remembered after it has run out."""

CLAIMED = "+"
"""Begins the stored owner of a lease that is remembered; others end when they run out."""
