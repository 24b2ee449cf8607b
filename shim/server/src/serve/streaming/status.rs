//! How a command's end is told: the `Status` object of Kubernetes' API, as JSON, since version 4 of the protocols; plain
//! text, and nothing at all for success, in the versions before.

use serde_json::json;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// With an exit code.
    Exit(i32),
    /// Attach: the container's streams ended.
    Detached,
    /// It could not be begun or continued.
    Failed(String),
}

impl End {
    /// The bytes for the error stream.
    pub(super) fn encode(&self, structured: bool) -> Vec<u8> {
        match structured {
            true => self.status().to_string().into_bytes(),
            false => self.text().into_bytes(),
        }
    }

    fn text(&self) -> String {
        match self {
            End::Exit(0) | End::Detached => String::new(),
            End::Exit(code) => {
                format!("command terminated with non-zero exit code: command terminated with exit code {code}")
            }
            End::Failed(why) => format!("Internal error occurred: {why}"),
        }
    }

    fn status(&self) -> serde_json::Value {
        match self {
            End::Exit(0) | End::Detached => json!({ "metadata": {}, "status": "Success" }),
            End::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            End::Failed(why) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "InternalError",
                "details": { "causes": [{ "message": why }] },
                "code": 500,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_a_cause_in_json_and_words_in_text() {
        let status: serde_json::Value = serde_json::from_slice(&End::Exit(7).encode(true)).unwrap();
        assert_eq!((&status["status"], &status["reason"]), (&"Failure".into(), &"NonZeroExitCode".into()));
        assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "7" }));
        assert!(String::from_utf8(End::Exit(7).encode(false)).unwrap().ends_with("exit code 7"));
    }

    #[test]
    fn success_is_said_in_json_and_silent_in_text() {
        for end in [End::Exit(0), End::Detached] {
            assert_eq!(serde_json::from_slice::<serde_json::Value>(&end.encode(true)).unwrap()["status"], "Success");
            assert!(end.encode(false).is_empty());
        }
    }
}
