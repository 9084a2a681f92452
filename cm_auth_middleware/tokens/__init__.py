"""How are tokens fetched, refreshed once, shared and ended?"""
