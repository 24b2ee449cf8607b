//! The verbs, in one table, and what stands before them.

pub mod args;
mod checkpoint;
pub mod flags;
mod flow;
mod help;
mod inspect;
mod launch;
pub mod log;
mod notify;
mod template;
mod terminal;
mod update;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use args::{Globals, Plain};
use coracle_runtime::Runtime;
use flags::{Flag, Flags, Unparsed};

/// The program's name, whatever it was called as.
const PROGRAM: &str = "coracle-oci";
/// Where state is kept unless told otherwise.
const STATE: &str = "coracle-oci";
/// The exit code of an unknown verb, as runc's.
const UNKNOWN_VERB: i32 = 3;
/// What runc's exec answers for its own failures, to tell them from the program's 1.
const EXEC_FAILED: i32 = 255;

/// How many arguments a verb takes.
enum Count {
    Exactly(usize),
    AtLeast(usize),
    Between(usize, usize),
}

/// One verb.
struct Verb {
    name: &'static str,
    summary: &'static str,
    arguments: &'static str,
    about: &'static str,
    flags: &'static [Flag],
    count: Count,
    /// Whether all from the first argument on is handed on to another program.
    hands_on: bool,
    /// Whether this program becomes, for a moment, a process of a container.
    seals: bool,
    run: fn(&Call) -> Result<i32>,
}

/// A verb that was called.
pub struct Call {
    verb: &'static Verb,
    words: Vec<String>,
    /// What stood before it.
    pub globals: Globals,
    /// The runtime of `--root`.
    pub runtime: Runtime,
}

impl Call {
    /// The verb's flags and arguments.
    fn parse<F: Flags>(&self) -> Result<F, Unparsed> {
        let mut flags: F = flags::parse(self.words.iter().cloned(), self.verb.hands_on)?;
        let (given, name) = (flags.words().len(), self.verb.name);
        let wanted = match self.verb.count {
            Count::Exactly(n) if given != n => format!("exactly {n}"),
            Count::AtLeast(n) | Count::Between(n, _) if given < n => format!("a minimum of {n}"),
            Count::Between(_, n) if given > n => format!("a maximum of {n}"),
            _ => return Ok(flags),
        };
        Err(Unparsed::Count(format!("{PROGRAM}: {name:?} requires {wanted} argument(s)")))
    }

    /// The container of a verb without flags.
    fn id(&self) -> Result<String, Unparsed> {
        Ok(self.parse::<Plain>()?.words.swap_remove(0))
    }
}

const fn verb<F: Flags>(
    name: &'static str,
    summary: &'static str,
    arguments: &'static str,
    count: Count,
    run: fn(&Call) -> Result<i32>,
) -> Verb {
    Verb { name, summary, arguments, about: "", flags: F::LIST, count, hands_on: false, seals: false, run }
}

impl Verb {
    const fn about(self, about: &'static str) -> Verb {
        Verb { about, ..self }
    }

    const fn handing_on(self) -> Verb {
        Verb { hands_on: true, ..self }
    }

    const fn sealed(self) -> Verb {
        Verb { seals: true, ..self }
    }
}

const ONE: Count = Count::Exactly(1);
const ID: &str = "<container-id>";

static VERBS: &[Verb] = &[
    verb::<args::Checkpoint>("checkpoint", "save the state of a running container, by CRIU", ID, ONE, |call| {
        checkpoint::checkpoint(call, call.parse()?)
    })
    .about("The container ends, unless it is left running."),
    verb::<args::Create>("create", "create a container; its program waits for start", ID, ONE, |call| {
        launch::create(call, call.parse()?)
    })
    .sealed()
    .about("Makes the container by the bundle's config.json. Its id must be unique among those of the same --root."),
    verb::<args::Delete>("delete", "remove what is left of a container", ID, ONE, |call| {
        launch::delete(call, &call.parse()?)
    })
    .about("A container that is stopped or was never started is removed; a running one only with --force."),
    verb::<args::Events>("events", "print statistics and OOM events of a container", ID, ONE, |call| {
        inspect::events(&call.runtime, &call.parse()?)
    })
    .about("One JSON document a line: statistics every interval, OOM events as they come; until the container stops."),
    verb::<args::Exec>(
        "exec",
        "run another process in a container",
        "<container-id> <command> [command options] || --process process.json <container-id>",
        Count::AtLeast(1),
        |call| launch::exec(call, call.parse()?),
    )
    .about("Exits with the code of the process, or with 255 if it could not be run.")
    .sealed()
    .handing_on(),
    verb::<args::Kill>(
        "kill",
        "send a signal to a container's first process",
        "<container-id> [signal]",
        Count::Between(1, 2),
        |call| inspect::kill(&call.runtime, &call.parse()?),
    )
    .about("The signal is a number or a name, with or without SIG; SIGTERM if there is none."),
    verb::<args::List>("list", "list the containers of --root", "", Count::Exactly(0), |call| {
        inspect::list(call, &call.parse()?)
    }),
    verb::<Plain>("pause", "freeze all processes of a container", ID, ONE, |call| {
        done(call.runtime.pause(&call.id()?))
    }),
    verb::<args::Ps>(
        "ps",
        "show the processes of a container",
        "<container-id> [ps options]",
        Count::AtLeast(1),
        |call| inspect::ps(&call.runtime, &call.parse()?),
    )
    .about("By ps(1) with -ef or the options given.")
    .handing_on(),
    verb::<args::Restore>("restore", "make a container from a saved state, by CRIU", ID, ONE, |call| {
        checkpoint::restore(call, call.parse()?)
    })
    .about("It runs at once. Exits with the code of the container's program; 128 + N if signal N ended it."),
    verb::<Plain>("resume", "thaw all processes of a container", ID, ONE, |call| {
        done(call.runtime.resume(&call.id()?))
    }),
    verb::<args::Run>("run", "create and start a container, and wait for it", ID, ONE, |call| {
        launch::run(call, call.parse()?)
    })
    .sealed()
    .about("Exits with the code of the container's program; 128 + N if signal N ended it."),
    verb::<args::Spec>("spec", "write a config.json to begin with", "", Count::Exactly(0), |call| {
        template::write(&call.parse()?).map(|()| 0)
    }),
    verb::<Plain>("start", "run the program of a created container", ID, ONE, |call| launch::start(call, &call.id()?)),
    verb::<Plain>("state", "print the state of a container", ID, ONE, |call| {
        inspect::state(&call.runtime, &call.id()?)
    }),
    verb::<Plain>("stats", "print what a container uses, once", ID, ONE, |call| {
        inspect::stats(&call.runtime, &call.id()?)
    }),
    verb::<args::Update>("update", "change the limits of a container", ID, ONE, |call| {
        update::update(&call.runtime, &call.parse()?).map(|()| 0)
    }),
    verb::<Plain>("features", "print what this runtime can do, as JSON", "", Count::Exactly(0), |call| {
        call.parse::<Plain>()?;
        template::features().map(|()| 0)
    }),
];

fn done(result: coracle_runtime::Result<()>) -> Result<i32> {
    Ok(result.map(|()| 0)?)
}

/// Does what the command line says; the exit code.
pub fn main() -> i32 {
    coracle_runtime::hear_children();
    let words = std::env::args_os()
        .skip(1)
        .map(|word| word.into_string().map_err(|word| Unparsed::Wrong(format!("argument {word:?} is not UTF-8"))));
    let globals = words.collect::<Result<Vec<_>, _>>().and_then(|words| flags::parse::<Globals>(words, true));
    let mut globals = match globals {
        Ok(globals) => globals,
        Err(unparsed) => return usage(unparsed, ". ", || help::program(Globals::LIST)),
    };
    let words = std::mem::take(&mut globals.words);
    let verb = words.first().and_then(|name| find(name));
    // The run that seals is replaced by the next: it had better do nothing before.
    let sealed = if verb.is_some_and(|verb| verb.seals) { coracle_runtime::seal_self() } else { Ok(()) };
    if let Err(error) = log::open(&globals).and_then(|()| Ok(sealed?)) {
        return fail(1, "", &error);
    }
    match (verb, words.split_first()) {
        _ if globals.version => say(&help::version()),
        (_, None) => say(&help::program(Globals::LIST)),
        (Some(verb), Some((_, rest))) => call(verb, globals, rest.to_vec()),
        (None, Some((name, rest))) if name == "help" || name == "h" => match rest.first() {
            None => say(&help::program(Globals::LIST)),
            Some(name) => find(name).map_or_else(|| unknown(name), |verb| say(&help::verb(verb))),
        },
        (None, Some((name, _))) => unknown(name),
    }
}

fn find(name: &str) -> Option<&'static Verb> {
    VERBS.iter().find(|verb| verb.name == name)
}

fn unknown(name: &str) -> i32 {
    log::error(&format!("No help topic for '{name}'"));
    UNKNOWN_VERB
}

fn fail(code: i32, prefix: &str, error: &anyhow::Error) -> i32 {
    log::error(&format!("{prefix}{error:#}"));
    code
}

fn call(verb: &'static Verb, globals: Globals, words: Vec<String>) -> i32 {
    let result = root(&globals).and_then(|root| {
        let call = Call { verb, words, globals, runtime: Runtime::new(root) };
        log::debug(|| format!("{} {:?}", verb.name, call.words));
        (verb.run)(&call)
    });
    let error = match result.map_err(|error| error.downcast::<Unparsed>()) {
        Ok(code) => return code,
        Err(Ok(unparsed)) => return usage(unparsed, ": ", || help::verb(verb)),
        Err(Err(error)) => error,
    };
    // runc's callers look for these words.
    match verb.name {
        "exec" => fail(EXEC_FAILED, "exec failed: ", &error),
        "create" => fail(1, "coracle-oci create failed: ", &error),
        "run" => fail(1, "coracle-oci run failed: ", &error),
        _ => fail(1, "", &error),
    }
}

/// What is said of a command line that was not understood: on stdout the help, in the log what is wrong.
fn usage(unparsed: Unparsed, separator: &str, help: impl FnOnce() -> String) -> i32 {
    match unparsed {
        Unparsed::Help => say(&help()),
        Unparsed::Wrong(words) => {
            say(&format!("Incorrect Usage{separator}{words}\n\n{}", help()));
            log::error(&words);
            1
        }
        Unparsed::Count(words) => {
            say(&format!("Incorrect Usage.\n\n{}", help()));
            log::error(&words);
            1
        }
    }
}

fn say(text: &str) -> i32 {
    inspect::print(text).map_or_else(|error| fail(1, "", &error), |()| 0)
}

/// The state root: as told, or the place of whoever calls.
fn root(globals: &Globals) -> Result<PathBuf> {
    if let Some(root) = &globals.root {
        let root = if root.as_os_str().is_empty() { std::env::current_dir() } else { std::path::absolute(root) };
        let root = root.context("--root")?;
        if root.parent().is_none() {
            bail!("--root must not be /: every directory there would be taken for a container");
        }
        return Ok(root);
    }
    let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty() && is_ordinary_user()) else {
        return Ok(Path::new("/run").join(STATE));
    };
    let root = Path::new(&dir).join(STATE);
    // The sticky bit keeps cleaners of the runtime directory away.
    let made = std::fs::create_dir_all(&root)
        .and_then(|()| std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o1700)));
    made.with_context(|| format!("make {} (is $XDG_RUNTIME_DIR writable for this user? else --root)", root.display()))?;
    Ok(root)
}

/// Not the host's root: another user, or root of a user namespace that such a one has made.
fn is_ordinary_user() -> bool {
    if !nix::unistd::geteuid().is_root() {
        return true;
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let host = map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
    !host && std::env::var_os("USER").is_none_or(|user| user != "root")
}
