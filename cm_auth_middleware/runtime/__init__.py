"""How is the outside world awaited, on an event loop or in a thread?"""
