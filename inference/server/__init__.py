"""`codeclm serve`: a model behind HTTP and a WebSocket, and a page to talk to it."""
