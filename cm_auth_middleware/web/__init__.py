"""What does a request look like, and what do we answer?"""
