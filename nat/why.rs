//! What decided, for whoever asks why: rule, mapping, numbers.
//!
//! The hooks are generic over [`Notes`]. With [`NoNotes`] every note compiles to nothing.

use std::fmt;

use crate::state::{Direction, TcpState};
use crate::tuple::{TransportAddr, Tuple};

/// A hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before the route: destinations.
    Prerouting,
    /// Behind it: sources.
    Postrouting,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Prerouting => "prerouting",
            Self::Postrouting => "postrouting",
        })
    }
}

/// One thing that decided about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Conntrack knows its flow.
    Flow {
        /// Its tuple.
        tuple: Tuple,
        /// Which of the flow's two that is.
        direction: Direction,
        /// Where the flow stands, if it is TCP.
        state: TcpState,
    },
    /// It begins a flow.
    New {
        /// Its tuple.
        tuple: Tuple,
    },
    /// A rule decided.
    Rule {
        /// Of this hook.
        hook: Hook,
        /// Counted from 0.
        number: usize,
        /// The rule in words.
        text: String,
    },
    /// No rule of that hook matched.
    NoRule(Hook),
    /// An inside address and port is shown with an external one.
    Mapped {
        /// The inside one.
        inside: TransportAddr,
        /// The external one.
        external: TransportAddr,
    },
    /// An external address and port leads to an inside one, because that has spoken to whoever sends.
    Behind {
        /// The external one.
        external: TransportAddr,
        /// The inside one.
        inside: TransportAddr,
    },
    /// Both ends are inside: the source is shown with its external address (RFC 4787 REQ-9).
    Hairpin,
    /// The packet was rewritten.
    Translated {
        /// What it was.
        from: Tuple,
        /// What it is.
        to: Tuple,
    },
    /// It is an ICMP error about a packet of a flow.
    Related {
        /// The quoted packet, as its sender sent it.
        about: Tuple,
    },
    /// A SYN's MSS was lowered.
    Mss {
        /// What it said.
        from: u16,
        /// What it says.
        to: u16,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flow { tuple, direction, state } => {
                let way = match direction {
                    Direction::Original => "original",
                    Direction::Reply => "reply",
                };
                write!(f, "{tuple} is the {way} direction of a known flow")?;
                match state {
                    TcpState::None => Ok(()),
                    state => write!(f, ", {state}"),
                }
            }
            Self::New { tuple } => write!(f, "{tuple} is no known flow: the rules are asked"),
            Self::Rule { hook, number, text } => write!(f, "{hook} rule {number} matches: {text}"),
            Self::NoRule(hook) => write!(f, "no rule of {hook} matches"),
            Self::Mapped { inside, external } if inside.port == external.port => {
                write!(f, "{inside} is shown as {external}, its port kept")
            }
            Self::Mapped { inside, external } => {
                write!(f, "{inside} is shown as {external}, as its own port was taken")
            }
            Self::Behind { external, inside } => {
                write!(f, "{inside} is behind {external} and may be answered from there")
            }
            Self::Hairpin => {
                write!(f, "both ends are inside: the source shows its external address")
            }
            Self::Translated { from, to } => write!(f, "{from} becomes {to}"),
            Self::Related { about } => write!(f, "an ICMP error about {about}"),
            Self::Mss { from, to } => write!(f, "MSS {from} is lowered to {to}"),
        }
    }
}

/// Takes notes, or not.
pub trait Notes {
    /// Whether anybody listens; `false` removes the cost of making a note.
    const ASKED: bool;

    /// Takes a note.
    fn note(&mut self, note: Note);
}

/// Nobody asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNotes;

impl Notes for NoNotes {
    const ASKED: bool = false;

    fn note(&mut self, _: Note) {}
}

impl Notes for Vec<Note> {
    const ASKED: bool = true;

    fn note(&mut self, note: Note) {
        self.push(note);
    }
}
