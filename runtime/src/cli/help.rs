//! The help, laid out as runc's: NAME, USAGE, DESCRIPTION, COMMANDS, OPTIONS.

use std::fmt::Write;

use super::flags::Flag;
use super::{PROGRAM, VERBS, Verb};

/// The version, in the shape that tools parse.
pub fn version() -> String {
    format!("{PROGRAM} version {}\nspec: {}", env!("CARGO_PKG_VERSION"), coracle_runtime::OCI_VERSION)
}

/// The help of the whole program.
pub fn program(globals: &[Flag]) -> String {
    let commands: Vec<(String, &str)> = VERBS.iter().map(|verb| (verb.name.to_owned(), verb.summary)).collect();
    let commands =
        table(commands.into_iter().chain([("help, h".to_owned(), "show a list of commands, or the help of one")]));
    format!(
        "NAME:\n   {PROGRAM} - a runtime for OCI containers, with runc's command line\n\n\
         A container is made of a bundle: a directory with a {CONFIG} and, usually, a root filesystem. To make one of\n\
         the bundle in the current directory and run it:\n\n    # {PROGRAM} run <container-id>\n\n\
         USAGE:\n   {PROGRAM} [global options] command [command options] [arguments...]\n\n\
         VERSION:\n   {}\n\nCOMMANDS:\n{commands}\nGLOBAL OPTIONS:\n{}",
        version().trim_start_matches(PROGRAM).trim_start_matches(" version "),
        options(globals, true),
    )
}

/// The help of one verb.
pub fn verb(verb: &Verb) -> String {
    let Verb { name, summary, arguments, about, flags, .. } = verb;
    let options_word = if flags.is_empty() { "" } else { " [command options]" };
    let space = if arguments.is_empty() { "" } else { " " };
    let mut text = format!(
        "NAME:\n   {PROGRAM} {name} - {summary}\n\nUSAGE:\n   {PROGRAM} {name}{options_word}{space}{arguments}\n"
    );
    if !about.is_empty() {
        // A string takes the error of nobody.
        let _ = write!(text, "\nDESCRIPTION:\n   {}\n", about.replace('\n', "\n   "));
    }
    if !flags.is_empty() {
        let _ = write!(text, "\nOPTIONS:\n{}", options(flags, false));
    }
    text
}

const CONFIG: &str = "config.json";

fn options(flags: &[Flag], with_help: bool) -> String {
    let help = Flag { name: "help", short: "h", switch: true, usage: "show this help" };
    let help = with_help.then_some(&help);
    // What is taken for the sake of old scripts needs no help.
    let shown = flags.iter().filter(|flag| flag.usage.trim() != "obsolete");
    table(shown.chain(help).map(|flag| {
        let value = if flag.switch { "" } else { " value" };
        let mut names = format!("--{}{value}", flag.name.replace('_', "-"));
        if !flag.short.is_empty() {
            let _ = write!(names, ", -{}{value}", flag.short);
        }
        (names, flag.usage)
    }))
}

fn table<'a>(rows: impl Iterator<Item = (String, &'a str)>) -> String {
    let rows: Vec<_> = rows.collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, usage)| format!("   {name:width$}  {}\n", usage.trim())).collect()
}
