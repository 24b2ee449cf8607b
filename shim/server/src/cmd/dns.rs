//! `coracle dns`: the DNS server of pods, started when the first of them needs it.

use std::net::Ipv4Addr;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::net::Subnet;
use nix::unistd::setsid;

use crate::app::App;
use crate::dns;

/// Answer names of services and pods until no pod asks
#[derive(Debug, Args)]
pub struct Dns {
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS")]
    listen: Ipv4Addr,
    /// Who is answered [default: everybody]
    #[arg(long, value_name = "SUBNET")]
    clients: Option<Subnet>,
    /// Be the server, instead of starting it
    #[arg(long)]
    stay: bool,
}

impl Dns {
    /// Starts the server and leaves, or is it.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        if !self.stay {
            // A grandchild of whoever needs it, so that it is nobody's to wait for.
            let program = std::env::current_exe().context("find the running program")?;
            let mut command = Command::new(program);
            command.args(std::env::args_os().skip(1)).arg("--stay");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().context("run coracle dns --stay")?;
            return Ok(ExitCode::SUCCESS);
        }
        // It outlives the terminal and the session of who started it.
        setsid().context("begin a session")?;
        dns::server::serve(&app.paths.state, self.listen, self.clients).await?;
        Ok(ExitCode::SUCCESS)
    }
}
