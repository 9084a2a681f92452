"""One small app per framework, each with the same routes, for the servers of the matrix.

Options come from the environment (``CM_AUTH_…``). With ``MATRIX_MOUNT=/ui`` the app sits under
that path in another app, by the framework's own way of mounting, or the usual one for it.
"""
