"""May this request pass, and how does somebody log in?"""
