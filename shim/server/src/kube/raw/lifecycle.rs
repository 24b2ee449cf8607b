//! Probes and hooks.

use super::*;

raw! {
    /// Hooks of a container.
    Lifecycle {
        /// Right after it started; it counts as running when the hook is done.
        post_start = "postStart": LifecycleHandler,
        /// Before it is asked to stop, within the grace period.
        pre_stop = "preStop": LifecycleHandler,
        /// The signal that asks it to stop, instead of the image's.
        stop_signal = "stopSignal": String,
    }
}

raw! {
    /// What a hook does: one of these.
    LifecycleHandler {
        /// Runs a command in the container.
        exec = "exec": ExecAction,
        /// Asks a web server.
        http_get = "httpGet": HttpGetAction,
        /// Opens a connection.
        tcp_socket = "tcpSocket": TcpSocketAction,
        /// Waits.
        sleep = "sleep": SleepAction,
    }
}

raw! {
    /// A look at whether a container is well: one action, and when.
    Probe {
        /// Runs a command in the container: 0 is well.
        exec = "exec": ExecAction,
        /// Asks a web server: 200 to 399 is well.
        http_get = "httpGet": HttpGetAction,
        /// Opens a connection.
        tcp_socket = "tcpSocket": TcpSocketAction,
        /// Asks gRPC's health service.
        grpc = "grpc": GrpcAction,
        /// Seconds from the container's start to the first look.
        initial_delay = "initialDelaySeconds": i64,
        /// Seconds after which a look has failed; 1.
        timeout = "timeoutSeconds": i64,
        /// Seconds between looks; 10.
        period = "periodSeconds": i64,
        /// Successes in a row that count; 1.
        success = "successThreshold": i64,
        /// Failures in a row that count; 3.
        failure = "failureThreshold": i64,
        /// Instead of the pod's, when the probe ends the container.
        grace = "terminationGracePeriodSeconds": i64,
    }
}

raw! {
    /// A command in the container, without a shell.
    ExecAction {
        /// Its words.
        command = "command": List<String>,
    }
}

raw! {
    /// A request to a web server.
    HttpGetAction {
        /// Its path.
        path = "path": String,
        /// Its port, a number or a container's port by its name.
        port = "port": IntOrString,
        /// Its host; the pod's address where none is given.
        host = "host": String,
        /// HTTP, or HTTPS with any certificate.
        scheme = "scheme": String,
        /// Headers.
        headers = "httpHeaders": List<HttpHeader>,
    }
}

raw! {
    /// A header.
    HttpHeader {
        /// Its name.
        name = "name": String,
        /// Its value.
        value = "value": String,
    }
}

raw! {
    /// A connection.
    TcpSocketAction {
        /// Its port, a number or a container's port by its name.
        port = "port": IntOrString,
        /// Its host; the pod's address where none is given.
        host = "host": String,
    }
}

raw! {
    /// A question to gRPC's health service.
    GrpcAction {
        /// Its port.
        port = "port": i64,
        /// The service asked about.
        service = "service": String,
    }
}

raw! {
    /// A pause.
    SleepAction {
        /// How long.
        seconds = "seconds": i64,
    }
}
