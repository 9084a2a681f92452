"""Which session is this? A cookie goes in, a session comes out."""
