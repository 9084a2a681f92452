"""How does this package read a request, and which responses does it give itself?

A `Request` is the same for ASGI and WSGI; so is a `Response`: a redirect, JSON, a problem for a
program, or a page for a person in one of five languages.
"""
