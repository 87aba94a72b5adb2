//! What the labs look at again and again: who answers, who does not and how that shows, whom a server
//! sees.

use std::fmt;

use super::session::{Place, Session, Stop, ending};

/// Who speaks in place of an answer, and says what.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Instead {
    /// The kernel of whoever asks, before anything is sent.
    Kernel(&'static str),
    /// A router, by ICMP.
    Router(&'static str, &'static str),
}

impl fmt::Display for Instead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(words) => write!(f, "connect: {words}, and nothing is sent"),
            Self::Router(router, words) => write!(f, "From {router} … {words}"),
        }
    }
}

/// Requests of a ping.
const REQUESTS: usize = 2;

impl Session {
    /// `to` answers each request, with this TTL where one is given.
    pub(crate) fn answers(
        &mut self,
        from: Place,
        to: &str,
        name: &str,
        ttl: Option<u8>,
    ) -> Result<(), Stop> {
        let output = self.station(from, &format!("ping {to}"))?;
        let is_answer = |line: &&str| line.starts_with(&format!("64 bytes from {to}: "));
        let right = |line: &str| ttl.is_none_or(|ttl| line.contains(&format!(" ttl={ttl} ")));
        let answers: Vec<_> = output.stdout.lines().filter(is_answer).collect();
        let passed =
            output.success() && answers.len() == REQUESTS && answers.iter().all(|line| right(line));
        let seen = if answers.is_empty() { ending(&output) } else { answers.join("\n") };
        let ttl = ttl.map_or_else(String::new, |ttl| format!(" with ttl={ttl}"));
        let expected = format!("{REQUESTS} answers from {to}{ttl}");
        self.report.check(&format!("{from} reaches {name}"), &expected, &seen, passed);
        Ok(())
    }

    /// No request is answered, and this is said instead.
    pub(crate) fn does_not_answer(
        &mut self,
        from: Place,
        to: &str,
        name: &str,
        instead: Instead,
    ) -> Result<(), Stop> {
        let output = self.station(from, &format!("ping {to}"))?;
        let text = output.text();
        let is_told = |line: &&str| line.starts_with("From ") || line.starts_with("ping: ");
        let told: Vec<_> = text.lines().filter(is_told).collect();
        let right = |line: &&str| match instead {
            Instead::Kernel(words) => *line == format!("ping: connect: {words}"),
            Instead::Router(router, words) => {
                line.starts_with(&format!("From {router} icmp_seq=")) && line.ends_with(words)
            }
        };
        let passed = !output.success() && !told.is_empty() && told.iter().all(right);
        let seen = if told.is_empty() { ending(&output) } else { told.join("\n") };
        let what = format!("{from} does not reach {name}");
        self.report.check(&what, &instead.to_string(), &seen, passed);
        Ok(())
    }

    /// A page is served, and its server saw the client as `client`.
    pub(crate) fn is_seen_as(&mut self, from: Place, at: &str, client: &str) -> Result<(), Stop> {
        let output = self.station(from, &format!("get http://{at}/"))?;
        let page = output.stdout.trim();
        let passed = output.success() && page.contains(&format!("; you are {client}, port "));
        let seen = if output.success() { page.to_owned() } else { ending(&output) };
        let what = format!("{from} gets the page of {at}, and the server sees {client}");
        self.report.check(&what, &format!("Hello …; you are {client}"), &seen, passed);
        Ok(())
    }

    /// No connection is made, and the client is told `why`.
    pub(crate) fn cannot_dial(&mut self, from: Place, at: &str, why: &str) -> Result<(), Stop> {
        let output = self.station(from, &format!("dial {at}"))?;
        let said = output.stderr.trim();
        let passed = !output.success() && said.ends_with(why);
        let seen = if passed { said.to_owned() } else { ending(&output) };
        self.report.check(&format!("{from} cannot connect to {at}"), why, &seen, passed);
        Ok(())
    }

    /// A line of what a station shows begins with `start`.
    pub(crate) fn shows(
        &mut self,
        from: Place,
        show: &str,
        what: &str,
        start: &str,
    ) -> Result<(), Stop> {
        let output = self.station(from, show)?;
        let found = output.stdout.lines().find(|line| line.starts_with(start));
        let passed = output.success() && found.is_some();
        let seen = found.map_or_else(|| ending(&output), str::to_owned);
        self.report.check(what, start, &seen, passed);
        Ok(())
    }
}
