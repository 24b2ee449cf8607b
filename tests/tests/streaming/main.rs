//! Streams into and out of containers: commands, attached clients, forwarded ports, logs.
//!
//! | file | what it asks |
//! |---|---|
//! | `engine_streams` | the engine as a library: a command to its end, its input and output, a pod's ports |
//! | `exec`, `attach`, `forward` | `coracle serve`, through the protocols of kubectl |
//! | `logs` | the files that containers log to, while they are rotated |
//! | `server` | tokens, limits, TLS, the end of the server |
//! | `spdy`, `websocket`, `client` | clients of these protocols, written from their specifications and sharing no code with the server |

mod attach;
mod client;
mod engine_streams;
mod exec;
mod forward;
mod logs;
mod server;
mod spdy;
mod websocket;
