//! `pontoon conntrack`: flows, a line each, as `conntrack -L` prints them.

use ::daemon::api::{Flow, FlowSide};
use clap::Args;

use crate::failure::{Outcome, note};
use crate::output::{Listing, daemon};

/// List the flows that are tracked, as conntrack -L does
#[derive(Debug, Args)]
#[command(after_help = "\
A flow has two tuples: its first packet's, as its sender wrote it, and its answers', as they come in. They
mirror each other but where something is translated: another source is source NAT, another destination
is destination NAT (JSON says which, as SourceNat and DestinationNat). A zone is a network, or, from 32768 on,
the segment of an interface; a flow that crosses from one to another has one for each tuple.

Examples:
  pontoon conntrack
  pontoon conntrack eth0                                       begun by the world, on a raw:eth0
  pontoon conntrack bridge --counters --format json
  pontoon conntrack --nat                                      what is translated
  pontoon conntrack --nat --why                                and by which rule and mapping")]
pub(crate) struct Conntrack {
    /// Of this network only, or of the segment on this interface
    #[arg(value_name = "NETWORK|IF")]
    network: Option<String>,
    /// Print packets and octets of each direction
    #[arg(short, long)]
    counters: bool,
    /// Those with a translated source or destination only, as conntrack -L -j
    #[arg(long)]
    nat: bool,
    /// Say below each flow why a raw uplink translates it as it does
    #[arg(long)]
    why: bool,
    #[command(flatten)]
    listing: Listing,
}

impl Conntrack {
    pub(crate) fn go(self) -> Outcome {
        let mut flows = daemon()?.conntrack(self.network.as_deref(), self.why)?;
        flows.retain(|flow| !self.nat || flow.source_nat || flow.destination_nat);
        self.listing.print(&flows, |flows| {
            note(format_args!("{} flow entries", flows.len()));
            flows.iter().map(|flow| lines(flow, self.counters)).collect::<Vec<_>>().join("\n")
        })
    }
}

/// The flow's line, and why it is so.
fn lines(flow: &Flow, counters: bool) -> String {
    let why = flow.why.iter().map(|why| format!("\n    {why}"));
    std::iter::once(line(flow, counters)).chain(why).collect()
}

/// `tcp      6 431999 ESTABLISHED src=… dst=… sport=… dport=… src=… dst=… sport=… dport=… [ASSURED] zone=1`
fn line(flow: &Flow, counters: bool) -> String {
    let mut words =
        vec![format!("{:<8} {} {}", flow.protocol, flow.protocol_number, flow.expires_in)];
    words.extend(flow.state.clone());
    words.push(side(flow, &flow.original, counters));
    let crosses = flow.zone != flow.reply_zone;
    words.extend(crosses.then(|| format!("zone-orig={}", flow.zone)));
    if !flow.replied {
        words.push("[UNREPLIED]".to_owned());
    }
    words.push(side(flow, &flow.reply, counters));
    words.extend(crosses.then(|| format!("zone-reply={}", flow.reply_zone)));
    if flow.assured {
        words.push("[ASSURED]".to_owned());
    }
    words.extend((!crosses).then(|| format!("zone={}", flow.zone)));
    words.join(" ")
}

fn side(flow: &Flow, side: &FlowSide, counters: bool) -> String {
    let mut text = format!("src={} dst={}", side.src, side.dst);
    match flow.protocol.as_str() {
        "icmp" | "icmpv6" => text += &format!(" id={}", side.src_port),
        "tcp" | "udp" | "udplite" | "sctp" | "dccp" => {
            text += &format!(" sport={} dport={}", side.src_port, side.dst_port);
        }
        // Keys are PPTP's, which has a version of its own (RFC 2637 §4.1).
        "gre" => text += " srckey=0x0 dstkey=0x0",
        _ => {}
    }
    if counters {
        text += &format!(" packets={} bytes={}", side.packets, side.octets);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(src: &str, dst: &str, src_port: u16, dst_port: u16) -> FlowSide {
        FlowSide { src: src.into(), dst: dst.into(), src_port, dst_port, packets: 5, octets: 420 }
    }

    fn flow(protocol: &str, number: u8, state: Option<&str>) -> Flow {
        Flow {
            network: "bridge".into(),
            zone: 1,
            answered_in: "bridge".into(),
            reply_zone: 1,
            protocol: protocol.into(),
            protocol_number: number,
            state: state.map(Into::into),
            expires_in: 431_999,
            original: side("172.17.0.2", "192.0.2.1", 40000, 80),
            reply: side("192.0.2.1", "198.51.100.7", 80, 40000),
            replied: true,
            assured: true,
            source_nat: true,
            destination_nat: false,
            why: vec![],
        }
    }

    #[test]
    fn why_stands_below_its_flow() {
        let told = Flow { why: vec!["one".into(), "two".into()], ..flow("udp", 17, None) };
        assert_eq!(lines(&told, false), format!("{}\n    one\n    two", line(&told, false)));
    }

    #[test]
    fn lines_are_conntracks() {
        assert_eq!(
            line(&flow("tcp", 6, Some("ESTABLISHED")), false),
            "tcp      6 431999 ESTABLISHED src=172.17.0.2 dst=192.0.2.1 sport=40000 dport=80 \
             src=192.0.2.1 dst=198.51.100.7 sport=80 dport=40000 [ASSURED] zone=1"
        );
        let unreplied = Flow { replied: false, assured: false, ..flow("udp", 17, None) };
        assert_eq!(
            line(&unreplied, true),
            "udp      17 431999 src=172.17.0.2 dst=192.0.2.1 sport=40000 dport=80 packets=5 bytes=420 \
             [UNREPLIED] src=192.0.2.1 dst=198.51.100.7 sport=80 dport=40000 packets=5 bytes=420 zone=1"
        );
        let crossing = Flow { reply_zone: 32_768, ..flow("udp", 17, None) };
        assert_eq!(
            line(&crossing, false),
            "udp      17 431999 src=172.17.0.2 dst=192.0.2.1 sport=40000 dport=80 zone-orig=1 \
             src=192.0.2.1 dst=198.51.100.7 sport=80 dport=40000 zone-reply=32768 [ASSURED]"
        );
        assert!(line(&flow("icmp", 1, None), false).contains("dst=192.0.2.1 id=40000 src="));
        let associated = line(&flow("sctp", 132, Some("COOKIE_WAIT")), false);
        let expected =
            "sctp     132 431999 COOKIE_WAIT src=172.17.0.2 dst=192.0.2.1 sport=40000 dport=80 ";
        assert!(associated.starts_with(expected), "{associated}");
        assert!(
            line(&flow("gre", 47, None), false).contains("dst=192.0.2.1 srckey=0x0 dstkey=0x0")
        );
        assert!(line(&flow("unknown", 253, None), false).contains("dst=192.0.2.1 src="));
    }
}
