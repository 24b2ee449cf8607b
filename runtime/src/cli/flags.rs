//! The grammar of the command line: that of Go's flag package, as runc's callers have it in their fingers and scripts.
//!
//! ```text
//! -flag  --flag  -flag=VALUE  --flag VALUE    one dash or two; the value may look like a flag itself
//! --switch  --switch=false                    a switch takes its value only by =
//! --                                          ends the flags
//! ```
//! Flags may follow arguments, unless the verb hands the rest on to another program (`exec`, `ps`). The macro [`flags!`]
//! declares a struct; the same lines are its parser and its help.

use std::path::PathBuf;

/// Why a command line was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unparsed {
    /// `--help`.
    #[error("help was asked for")]
    Help,
    /// Its words say what is wrong.
    #[error("{0}")]
    Wrong(String),
    /// Too few or too many arguments: told without a word of usage before it, as runc does.
    #[error("{0}")]
    Count(String),
}

/// One flag, for the help.
pub struct Flag {
    /// With `_` for `-`.
    pub name: &'static str,
    /// One letter, or empty.
    pub short: &'static str,
    /// Whether it goes without a value.
    pub switch: bool,
    /// What it does.
    pub usage: &'static str,
}

impl Flag {
    fn is(&self, word: &str) -> bool {
        word == self.short || (!word.contains('_') && self.name == word.replace('-', "_"))
    }
}

/// What a flag holds.
pub trait Value {
    /// A boolean.
    const SWITCH: bool = false;
    /// Takes the text; `None` when it is no such value.
    fn take(&mut self, text: &str) -> Option<()>;
}

impl Value for bool {
    const SWITCH: bool = true;
    fn take(&mut self, text: &str) -> Option<()> {
        *self = boolean(text)?;
        Some(())
    }
}

impl<T: Single> Value for T {
    fn take(&mut self, text: &str) -> Option<()> {
        *self = T::from_text(text)?;
        Some(())
    }
}

/// Without a text it is as if it was not given, as with runc: scripts write `--apparmor "$PROFILE"`.
impl<T: Single> Value for Option<T> {
    fn take(&mut self, text: &str) -> Option<()> {
        *self = if text.is_empty() { None } else { Some(T::from_text(text)?) };
        Some(())
    }
}

impl Value for Option<bool> {
    const SWITCH: bool = true;
    fn take(&mut self, text: &str) -> Option<()> {
        *self = Some(boolean(text)?);
        Some(())
    }
}

/// A flag that may come again and again.
impl<T: Single> Value for Vec<T> {
    fn take(&mut self, text: &str) -> Option<()> {
        self.push(T::from_text(text)?);
        Some(())
    }
}

/// A value by itself.
pub trait Single: Sized {
    /// Reads it.
    fn from_text(text: &str) -> Option<Self>;
}

macro_rules! single_by_parse {
    ($($kind:ty),*) => { $(impl Single for $kind {
        fn from_text(text: &str) -> Option<Self> { text.parse().ok() }
    })* };
}
single_by_parse!(String, PathBuf, u16, u32, u64, i64);

/// A boolean as Go's strconv reads it.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What [`flags!`] declares.
pub trait Flags: Default {
    /// All flags.
    const LIST: &'static [Flag];
    /// Gives a flag its value.
    fn set(&mut self, name: &str, text: &str) -> Option<()>;
    /// The arguments that are no flags.
    fn words(&mut self) -> &mut Vec<String>;
}

/// Declares a struct of flags: `name [short]: type`, with the help as its doc comment. `words` are the other arguments.
macro_rules! flags {
    ($(#[doc = $about:literal])+ $name:ident {
        $( $(#[doc = $usage:literal])+ $field:ident $([$short:literal])? : $kind:ty, )*
    }) => {
        $(#[doc = $about])+
        #[derive(Debug, Default)]
        pub struct $name {
            $( $(#[doc = $usage])+ pub $field: $kind, )*
            /// The arguments that are no flags.
            pub words: Vec<String>,
        }
        impl $crate::cli::flags::Flags for $name {
            const LIST: &'static [$crate::cli::flags::Flag] = &[$( $crate::cli::flags::Flag {
                name: stringify!($field),
                short: concat!($($short)?),
                switch: <$kind as $crate::cli::flags::Value>::SWITCH,
                usage: concat!($($usage),+),
            } ),*];
            fn set(&mut self, name: &str, _text: &str) -> Option<()> {
                match name {
                    $( stringify!($field) => $crate::cli::flags::Value::take(&mut self.$field, _text), )*
                    _ => None,
                }
            }
            fn words(&mut self) -> &mut Vec<String> {
                &mut self.words
            }
        }
    };
}
pub(super) use flags;

/// Parses words. With `stop` everything from the first argument on is an argument.
pub fn parse<F: Flags>(words: impl IntoIterator<Item = String>, stop: bool) -> Result<F, Unparsed> {
    let mut parsed = F::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let flag = match word.strip_prefix("--").or_else(|| word.strip_prefix('-')) {
            Some("") if word == "--" => {
                parsed.words().extend(words);
                break;
            }
            // A lone dash is an argument (the standard input).
            None | Some("") => {
                parsed.words().push(word);
                if stop {
                    parsed.words().extend(words);
                    break;
                }
                continue;
            }
            Some(flag) => flag,
        };
        take(&mut parsed, flag, &word, &mut words)?;
    }
    Ok(parsed)
}

fn take<F: Flags>(
    parsed: &mut F,
    flag: &str,
    word: &str,
    rest: &mut impl Iterator<Item = String>,
) -> Result<(), Unparsed> {
    if flag.starts_with(['-', '=']) {
        return Err(Unparsed::Wrong(format!("bad flag syntax: {word}")));
    }
    let (name, value) = match flag.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (flag, None),
    };
    let Some(known) = F::LIST.iter().find(|known| known.is(name)) else {
        return Err(match name {
            "help" | "h" => Unparsed::Help,
            _ => Unparsed::Wrong(format!("flag provided but not defined: -{name}")),
        });
    };
    let text = match value {
        Some(value) => value,
        None if known.switch => "true".to_owned(),
        None => rest.next().ok_or_else(|| Unparsed::Wrong(format!("flag needs an argument: -{name}")))?,
    };
    let kind = if known.switch { "boolean value" } else { "value" };
    parsed.set(known.name, &text).ok_or_else(|| {
        let prefix = if known.switch { " for" } else { " for flag" };
        Unparsed::Wrong(format!("invalid {kind} {text:?}{prefix} -{name}: parse error"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    flags! {
        /// A try
        Try {
            /// A switch
            on ["o"]: bool,
            /// A text
            two_words ["t"]: Option<String>,
            /// Numbers
            number: Vec<i64>,
        }
    }

    fn parsed(line: &str, stop: bool) -> Result<Try, String> {
        parse(line.split_whitespace().map(str::to_owned), stop).map_err(|e| e.to_string())
    }

    #[test]
    fn one_dash_or_two_and_values_by_either_way() {
        for line in ["-two-words x -on", "--two-words=x --o=true", "-t x -o=1", "-t=x -on a"] {
            let got = parsed(line, false).unwrap();
            assert_eq!((got.on, got.two_words.as_deref()), (true, Some("x")), "{line}");
        }
        assert_eq!(parsed("--number -1 --number=2", false).unwrap().number, [-1, 2]);
        assert!(!parsed("-on -on=false", false).unwrap().on);
    }

    #[test]
    fn flags_follow_arguments_unless_the_rest_is_handed_on() {
        let mixed = parsed("a -o b - -- -t", false).unwrap();
        assert_eq!((mixed.on, mixed.words.join(" ")), (true, "a b - -t".to_owned()));
        let handed = parsed("-o a -t -- b", true).unwrap();
        assert_eq!(handed.words.join(" "), "a -t -- b");
    }

    #[test]
    fn what_is_wrong_is_said_in_gos_words() {
        for (line, words) in [
            ("-x", "flag provided but not defined: -x"),
            ("--two_words a", "flag provided but not defined: -two_words"),
            ("--number", "flag needs an argument: -number"),
            ("--number=a", "invalid value \"a\" for flag -number: parse error"),
            ("--on=maybe", "invalid boolean value \"maybe\" for -on: parse error"),
            ("---o", "bad flag syntax: ---o"),
            ("-=", "bad flag syntax: -="),
        ] {
            assert_eq!(parsed(line, false).unwrap_err(), words);
        }
        assert_eq!(parse::<Try>(["-h".to_owned()], false).unwrap_err(), Unparsed::Help);
    }
}
