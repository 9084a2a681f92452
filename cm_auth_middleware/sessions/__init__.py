"""Which session is this? A cookie goes in, a session comes out.

`manager` loads a session: the cookie (`cookie`) has the id of a record and a part of its key, the
store has the encrypted record, and `encryption` opens it. `record` is the content of a record, with
the tokens; `session` is the part that a handler sees.
"""
