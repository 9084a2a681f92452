"""How does the package reach the world outside: time, HTTP, threads, event loops?

Everything above this folder is written once, as ``async def``, against `base.Runtime`. Two classes
of one shape implement it: `event_loops.EventLoopRuntime` awaits, `threads.ThreadRuntime` blocks.
`run_sync` explains how code that blocks needs no event loop, and `running_loop`
finds the one that runs.
"""
