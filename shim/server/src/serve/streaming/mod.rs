//! Exec, attach and port-forward over HTTP: SPDY/3.1 and WebSocket.
