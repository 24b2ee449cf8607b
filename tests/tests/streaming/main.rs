//! Streams into and out of containers: commands, logs, attached clients and forwarded ports.
//!
//! | file | what it asks |
//! |---|---|
//! | `engine_streams` | the engine as a library: a command to its end, its input and output, a pod's ports |

mod engine_streams;
